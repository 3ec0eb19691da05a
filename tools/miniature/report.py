"""Results of nets over several seeds: mean and spread as a table and as a plot."""

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from tools import markdown
from tools.miniature.data import THIRDS
from utils.metrics import TopKError


class ScaleError(TopKError):
    """Loss, and top-1 error in %, overall (`err1`) and of each third of the sizes; counted in one process."""

    def __init__(self, device: torch.device):
        super().__init__(device)
        del self.averages['err5']
        self.wrong, self.seen = torch.zeros(2, len(THIRDS), dtype=torch.int64, device=device)

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss (), outputs N x C, labels and thirds N x 2."""
        labels, thirds = targets.T
        wrong = outputs.argmax(1) != labels
        self.averages['loss'].update(loss, len(wrong))
        self.averages['err1'].add(100 * wrong.sum(), len(wrong))
        self.seen += thirds.bincount(minlength=len(THIRDS))
        self.wrong += thirds[wrong].bincount(minlength=len(THIRDS))

    def progress(self) -> str:
        """Last value and average so far."""
        loss, err1 = self.averages.values()
        return f'Loss {loss.value:.4f} ({loss.average:.4f})\tErr@1 {err1.value:.3f} ({err1.average:.3f})'

    def compute(self) -> dict[str, Any]:
        """loss, err1, the error of each third (None of an empty one), and how many pictures each third has."""
        counts = zip(THIRDS, self.wrong.tolist(), self.seen.tolist(), strict=True)
        thirds = {name: 100 * wrong / seen if seen else None for name, wrong, seen in counts}
        return {**super().compute(), **thirds, 'pictures': dict(zip(THIRDS, self.seen.tolist(), strict=True))}

    def summary(self, results: dict[str, Any]) -> str:
        """The line that ends an evaluation."""
        return f' * Err@1 {results["err1"]:.3f}'

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), 'wrong': self.wrong.tolist(), 'seen': self.seen.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.wrong.copy_(torch.tensor(state['wrong']))
        self.seen.copy_(torch.tensor(state['seen']))


MEASURES = {'err1': 'all', 'small': 'small', 'medium': 'medium', 'large': 'large'}
Results = list[dict[str, Any]]  # of each run data, net, seed and every measure, in %


def spread(values: list[float]) -> tuple[float, float]:
    """Mean and standard deviation (of the sample, n - 1) of a measure over seeds; that of one seed is nan."""
    return mean(values), stdev(values) if len(values) > 1 else float('nan')


def by_net(results: Results) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Of each data set and net every measure of all seeds; of a third without pictures, none."""
    found = {}
    for result in results:
        nets = found.setdefault(result['data'], {})
        for measure, values in nets.setdefault(result['net'], {name: [] for name in MEASURES}).items():
            values += [] if result[measure] is None else [result[measure]]
    return found


def table(results: Results, costs: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """A row per data set and net in markdown; `costs` says their parameters and multiply-accumulates."""
    header = ['data', 'net', 'seeds', 'parameters (M)', 'GMACs', *(f'error, {x} (%)' for x in MEASURES.values())]
    rows = []
    for data, nets in by_net(results).items():
        for net, measures in nets.items():
            parameters, macs = costs[data][net]
            cost = [f'{parameters / 1e6:.2f}', f'{macs / 1e9:.4f}']
            rows.append([data, net, len(measures['err1']), *cost, *map(cell, measures.values())])
    return markdown.table(header, 'llrrrrrrr', rows)


def cell(values: list[float]) -> str:
    """Mean and standard deviation; of one seed the mean alone."""
    if not values:
        return ''
    middle, deviation = spread(values)
    return f'{middle:.2f} ± {deviation:.2f}' if len(values) > 1 else f'{middle:.2f}'


def draw(results: Results) -> Figure:
    """A panel per data set: mean and standard deviation of each net overall and by size, a dot for each seed."""
    sets = by_net(results)
    figure = Figure(figsize=(4.5 * len(sets), 3.8), layout='constrained')
    panels = figure.subplots(1, len(sets), squeeze=False)[0]
    for panel, (data, nets) in zip(panels, sets.items(), strict=True):
        draw_panel(panel, data, nets)
    figure.legend(*panels[0].get_legend_handles_labels(), loc='outside lower center', ncols=4, frameon=False)
    return figure


def draw_panel(panel: Axes, data: str, nets: dict[str, dict[str, list[float]]]) -> None:
    """The nets beside each other at every measure."""
    for number, (net, measures) in enumerate(nets.items()):
        offset = 0.24 * (number - (len(nets) - 1) / 2)
        found = {place + offset: values for place, values in enumerate(measures.values()) if values}
        middles, deviations = zip(*map(spread, found.values()), strict=True)
        panel.errorbar(list(found), middles, deviations, fmt='o', capsize=4, color=f'C{number}', label=net)
        for place, values in found.items():
            panel.plot([place + 0.07] * len(values), values, '.', ms=3, color=f'C{number}', alpha=0.6)
    panel.set_xticks(range(len(MEASURES)), MEASURES.values())
    panel.set(title=data, xlabel='objects', ylabel='error (%)', ylim=(0, None))
    panel.grid(alpha=0.3, axis='y')
