"""What runs of nets over several seeds say: errors, paired differences, and which claims these bear out."""

from collections.abc import Mapping
from statistics import mean, stdev
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from tools import markdown

MEASURES = {'err1': 'all', 'small': 'small', 'medium': 'medium', 'large': 'large'}
CONFIDENCE = 0.95
# Of which two nets the first has the lower error, if the claim holds.
CLAIMS = {
    'Elastic beats the base net, at equal multiply-accumulates': ('elastic', 'base'),
    'depth alone beats it, at equal multiply-accumulates': ('deep-equal-cost', 'base'),
    'scales beat depth alone, at equal multiply-accumulates': ('elastic', 'deep-equal-cost'),
    'scales beat depth alone, at equal parameters, with 10 % fewer multiply-accumulates': ('elastic', 'deep'),
    'scales help a RegNetY, with 16 % fewer multiply-accumulates': ('regnety-elastic', 'regnety'),
}
LIMITS = (
    'Each interval is of 95 %, for other initial values and another order of the same pictures. The third claim is '
    'what the controls are for. Of ten verdicts without any difference one or more are wrong in up to 40 % of studies.'
)
PAIRS = *CLAIMS.values(), ('deep', 'base'), ('deep', 'deep-equal-cost')
Results = list[dict[str, Any]]  # of each run data, net, seed and every measure, in %
Values = dict[str, list[float]]  # of each measure those of all seeds, in their order


def by_net(results: Results) -> dict[str, dict[str, Values]]:
    """Of each data set and net every measure of all seeds; of a third without pictures, none."""
    found = {}
    for result in sorted(results, key=lambda result: result['seed']):
        nets = found.setdefault(result['data'], {})
        for measure, values in nets.setdefault(result['net'], {name: [] for name in MEASURES}).items():
            values += [] if result[measure] is None else [result[measure]]
    return found


def interval(values: list[float]) -> tuple[float, float]:
    """The ends of the interval that holds the mean with CONFIDENCE, by Student's t; nan of fewer than two values."""
    if len(values) < 2:
        return float('nan'), float('nan')
    reach = stats.t.ppf((1 + CONFIDENCE) / 2, len(values) - 1) * stdev(values) / len(values) ** 0.5
    return mean(values) - reach, mean(values) + reach


def differences(nets: dict[str, Values], net: str, other: str) -> Values:
    """Of each measure, seed by seed, how much larger it is of a net than of another."""
    pairs = {name: zip(values, nets[other][name], strict=True) for name, values in nets[net].items()}
    return {name: [value - less for value, less in values] for name, values in pairs.items()}


def tables(results: Results, costs: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """Errors, paired differences and claims, in markdown.

    `costs` are parameters and multiply-accumulates by data set and net.
    """
    sets = by_net(results)
    parts = [errors_table(sets, costs), differences_table(sets), claims_table(sets)]
    return '\n\n'.join(part for part in parts if part)


def errors_table(sets: dict[str, dict[str, Values]], costs: Mapping[str, Mapping[str, tuple[int, int]]]) -> str:
    """A row per data set and net: mean and standard deviation over seeds."""
    header = ['data', 'net', 'seeds', 'parameters (M)', 'GMACs', *(f'error, {x} (%)' for x in MEASURES.values())]
    rows = []
    for data, nets in sets.items():
        for net, measures in nets.items():
            parameters, macs = costs[data][net]
            cost = [f'{parameters / 1e6:.2f}', f'{macs / 1e9:.4f}']
            rows.append([data, net, len(measures['err1']), *cost, *map(spread, measures.values())])
    return markdown.table(header, 'llrrrrrrr', rows)


def spread(values: list[float]) -> str:
    """Mean and standard deviation (of the sample, n - 1); of one seed the mean alone."""
    if not values:
        return ''
    return f'{mean(values):.2f}' + (f' ± {stdev(values):.2f}' if len(values) > 1 else '')


def differences_table(sets: dict[str, dict[str, Values]]) -> str:
    """A row per data set and pair of nets: the mean difference, its interval, and how many seeds have either sign."""
    header = ['data', 'nets', *(f'difference, {x} (points)' for x in MEASURES.values())]
    rows = []
    for data, nets in sets.items():
        for net, other in PAIRS:
            rows.append([data, f'{net} - {other}', *map(paired, differences(nets, net, other).values())])
    return markdown.table(header, 'llrrrr', rows)


def paired(values: list[float]) -> str:
    """For instance `-1.20 (-2.00 to -0.40), 5 -, 0 +`; of one seed the difference alone."""
    if not values:
        return ''
    if len(values) == 1:
        return f'{values[0]:+.2f}'
    low, high = interval(values)
    below, above = sum(value < 0 for value in values), sum(value > 0 for value in values)
    return f'{mean(values):+.2f} ({low:+.2f} to {high:+.2f}), {below} -, {above} +'


def claims_table(sets: dict[str, dict[str, Values]]) -> str:
    """What the differences of all objects say of each claim, by data set; empty of one seed, which says nothing."""
    rows = []
    for claim, (net, other) in CLAIMS.items():
        found = [differences(nets, net, other)['err1'] for nets in sets.values()]
        if any(len(values) < 2 for values in found):
            return ''
        rows.append([claim, f'{net} - {other}', *map(verdict, found)])
    return markdown.table(['claim', 'difference', *sets], 'l' * (2 + len(sets)), rows) + f'\n\n{LIMITS}'


def verdict(values: list[float]) -> str:
    """Whether errors are lower, as claimed: the interval says yes, no, or neither."""
    low, high = interval(values)
    return 'yes' if high < 0 else 'no, the contrary' if low > 0 else 'undecided'


def draw(results: Results) -> Figure:
    """A column per data set: the nets' errors overall and by size, and below the differences that CLAIMS are about."""
    sets = by_net(results)
    figure = Figure(figsize=(6 * len(sets), 8), layout='constrained')
    for (above, below), (data, nets) in zip(figure.subplots(2, len(sets), squeeze=False).T, sets.items(), strict=True):
        draw_panel(above, nets)
        above.set(title=data, ylabel='error (%)', ylim=(0, None))
        draw_panel(below, {f'{net} - {other}': differences(nets, net, other) for net, other in CLAIMS.values()})
        below.axhline(0, color='grey', lw=0.8)
        below.set(xlabel='objects', ylabel='difference of the errors (points)\nbelow 0: the first net is better')
    return figure


def draw_panel(panel: Axes, groups: dict[str, Values]) -> None:
    """Nets, or pairs of them, beside each other at every measure: a dot for each seed, the mean and its interval."""
    for number, (name, measures) in enumerate(groups.items()):
        offset = 0.13 * (number - (len(groups) - 1) / 2)
        for place, values in enumerate(measures.values()):
            panel.plot([place + offset + 0.04] * len(values), values, '.', ms=3, color=f'C{number}', alpha=0.6)
        found = {place + offset: values for place, values in enumerate(measures.values()) if values}
        middles = [mean(values) for values in found.values()]
        reach = [interval(values)[1] - middle for middle, values in zip(middles, found.values(), strict=True)]
        panel.errorbar(list(found), middles, reach, fmt='o', ms=4, capsize=3, color=f'C{number}', label=name)
    panel.set_xticks(range(len(MEASURES)), MEASURES.values())
    panel.grid(alpha=0.3, axis='y')
    panel.legend(fontsize=7, ncols=2, frameon=False)
