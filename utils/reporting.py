"""What a run says: printed lines, a bar on a terminal, log.jsonl and curves.png."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from utils.meters import Clock

ROOT = Path(__file__).resolve().parent.parent


class Reporter:
    """Prints lines every `every` iterations; on a terminal a bar shows the rest, into a pipe goes no bar."""

    def __init__(self, every: int):
        self.every = every

    def say(self, line: str) -> None:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()

    def bar(self, batches: Iterator, total: int, start: int = 0, label: str = '') -> tqdm:
        on_terminal = sys.stdout.isatty() and sys.stderr.isatty()
        return tqdm(batches, label, total, initial=start, leave=False, disable=not on_terminal)

    def train_line(self, epoch: int, step: int, steps: int, clock: Clock, metrics: Any) -> None:
        self.say(f'Epoch: [{epoch}][{step}/{steps}]\t{_times(clock)}\tData {_pair(clock.data)}\t{metrics.progress()}')

    def test_line(self, step: int, steps: int, clock: Clock, metrics: Any) -> None:
        self.say(f'Test: [{step}/{steps}]\t{_times(clock)}\t{metrics.progress()}')


class Log:
    """log.jsonl: a line for each start of a run, then one per epoch; curves.png is drawn from it."""

    def __init__(self, folder: Path):
        self.path, self.picture = folder / 'log.jsonl', folder / 'curves.png'

    def start(self, arguments: dict[str, Any], **facts: Any) -> None:
        """Note a (re)start: arguments, git commit, torch version and what else tells runs apart."""
        self._append({'args': arguments, 'git': git_commit(), 'torch': torch.__version__, **facts})

    def epoch(self, **record: Any) -> None:
        """Note an epoch and draw the curves anew."""
        self._append(record)
        draw_curves(self.epochs(), self.picture)

    def epochs(self) -> list[dict[str, Any]]:
        """One record per epoch in order; of an epoch run twice, after an interruption, the later."""
        records = map(json.loads, filter(None, self.path.read_text().split('\n')))
        return list({record['epoch']: record for record in records if 'epoch' in record}.values())

    def _append(self, record: dict[str, Any]) -> None:
        with open(self.path, 'a') as file:
            file.write(json.dumps(record, default=str) + '\n')


def draw_curves(epochs: list[dict[str, Any]], picture: Path) -> None:
    """One panel per measured quantity: training and validation over the epochs."""
    import matplotlib

    matplotlib.use('Agg')
    from matplotlib import pyplot

    quantities = list(epochs[0]['train'])
    figure, panels = pyplot.subplots(1, len(quantities), figsize=(4 * len(quantities), 3), squeeze=False)
    for panel, quantity in zip(panels[0], quantities, strict=True):
        for part in ('train', 'val'):
            points = [(record['epoch'] + 1, record[part][quantity]) for record in epochs if part in record]
            panel.plot(*zip(*points, strict=True), marker='.', label=part)
        panel.set(title=quantity, xlabel='epochs done', ylim=(0, None))
        panel.grid(alpha=0.3)
    panels[0][0].legend()
    figure.tight_layout()
    figure.savefig(picture, dpi=100)
    pyplot.close(figure)


def git_commit() -> str | None:
    """The commit of this checkout, `-dirty` behind it if files were changed; None outside git."""
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _times(clock: Clock) -> str:
    return f'Time {_pair(clock.time)}'


def _pair(last_and_average: list[float]) -> str:
    return '{:.3f} ({:.3f})'.format(*last_and_average)
