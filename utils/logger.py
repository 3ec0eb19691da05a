"""What a run says: printed lines, a bar on a terminal, log.jsonl and curves.png."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from tqdm import tqdm

from utils.distributed import is_main_process
from utils.files import write_figure, writing
from utils.metrics import Clock, Metrics, over_processes

ROOT = Path(__file__).resolve().parent.parent
COLORS = {'train': 'C0', 'val': 'C1'}  # of curves


class Reporter:
    """Prints lines every `every` iterations; on a terminal a bar shows the rest, into a pipe goes no bar.

    Of several processes only the first says anything. `images` are those of an iteration, of all processes together.
    """

    def __init__(self, every: int, images: int = 0):
        self.every, self.images = every, images

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        if is_main_process():
            try:
                tqdm.write(line, file=sys.stdout)
                sys.stdout.flush()
            except BrokenPipeError:  # nobody reads on, as behind `| head`
                if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                    raise
                # In training it stops where nothing is lost.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
                signal.raise_signal(signal.SIGTERM)

    def bar(self, batches: Iterator, total: int, start: int = 0, label: str = '') -> tqdm:
        """Pass batches on and show a bar of them on a terminal."""
        on_terminal = is_main_process() and sys.stdout.isatty() and sys.stderr.isatty()
        return tqdm(batches, label, total, initial=start, leave=False, disable=not on_terminal)

    def due(self, step: int, steps: int, common: int) -> bool:
        """Whether a test prints after `step`, of `steps` in this process and at least `common` in each."""
        return step % self.every == 0

    def train_line(self, epoch: int, step: int, steps: int, clock: Clock, lr: float, metrics: Metrics) -> None:
        """Print how training goes at a step."""
        data = f'Data {_pair(clock.data)}'
        self.say(f'Epoch: [{epoch}][{step}/{steps}]\t{self.times(clock)}\t{data}\t{metrics.progress()}')

    def test_line(self, step: int, steps: int, clock: Clock, metrics: Metrics) -> None:
        """Print how a test goes at a step."""
        self.say(f'Test: [{step}/{steps}]\t{self.times(clock)}\t{metrics.progress()}')

    def times(self, clock: Clock) -> str:
        """Seconds per iteration."""
        return f'Time {_pair(clock.time)}'


class SpeedReporter(Reporter):
    """Also says how many images a second go through all processes, and gives averages over them, as the reference.

    For these averages every process takes part in each line; so none is printed of a test's last batch that some lack.
    """

    def due(self, step: int, steps: int, common: int) -> bool:
        """As Reporter.due."""
        return super().due(step, steps, common) and step < common

    def train_line(self, epoch: int, step: int, steps: int, clock: Clock, lr: float, metrics: Metrics) -> None:
        """Print how training goes at a step."""
        super().train_line(epoch, step, steps, clock, lr, over_processes(metrics))

    def test_line(self, step: int, steps: int, clock: Clock, metrics: Metrics) -> None:
        """Print how a test goes at a step."""
        super().test_line(step, steps, clock, over_processes(metrics))

    def times(self, clock: Clock) -> str:
        """Seconds per iteration, images per second."""
        return f'{super().times(clock)}\tSpeed {_pair([self.images / max(time, 1e-9) for time in clock.time])}'


class SegmentationReporter(Reporter):
    """The lines of segmentation, which the reference wrote otherwise: both count from 1, tests images to the last."""

    def due(self, step: int, steps: int, common: int) -> bool:
        """As Reporter.due."""
        return super().due(step, steps, common) or step + 1 == steps

    def train_line(self, epoch: int, step: int, steps: int, clock: Clock, lr: float, metrics: Metrics) -> None:
        """Print how training goes at a step."""
        self.say(f'epoch: {epoch + 1}\titer: {step + 1}/{steps}\tlr: {lr:.6f}\t{metrics.progress()}')

    def test_line(self, step: int, steps: int, clock: Clock, metrics: Metrics) -> None:
        """Print how a test goes at a step."""
        self.say(f'eval: {metrics.progress()}')


class Log:
    """log.jsonl: a line for each start of a run, then one per epoch; curves.png is drawn from it."""

    def __init__(self, folder: Path):
        self.path, self.picture = folder / 'log.jsonl', folder / 'curves.png'

    def start(self, arguments: dict[str, Any], checkpoint: str, **facts: Any) -> None:
        """Note a (re)start: arguments, git commit, torch version, and the checkpoint's name, which tells runs apart."""
        self.note(args=arguments, checkpoint=checkpoint, git=git_commit(), torch=torch.__version__, **facts)
        self.draw()  # the last epoch's may be missing, of a run that was killed

    def note(self, **record: Any) -> None:
        """Append a line; UserError if the disk is full."""
        with writing(self.path), open(self.path, 'a+b') as file:
            file.seek(max(file.tell() - 1, 0))
            cut_off = file.read(1) not in (b'', b'\n')  # by a kill: that line stays apart from this one
            file.write(b'\n' * cut_off + json.dumps(record, default=str).encode() + b'\n')

    def epochs(self) -> list[dict[str, Any]]:
        """One record per epoch of the latest run, in order; what it did again after going back counts once.

        Runs share a folder if their checkpoints have different names. Lines that were cut off by a kill, or that others
        wrote, are left out.
        """
        runs, epochs = {}, {}
        for line in self.path.read_bytes().splitlines():
            with suppress(Exception):  # whatever reading another line than ours raises
                record = json.loads(line)
                if 'args' in record:
                    before, run = record['from_epoch'], record['checkpoint']
                    epochs = runs[run] = {n: done for n, done in runs.get(run, {}).items() if n < before}
                elif record['epoch'] in range(2**63) and all(isinstance(record.get(part, {}), dict) for part in COLORS):
                    epochs[record['epoch']] = record
        return list(epochs.values())

    def draw(self) -> None:
        """Draw the curves of all epochs noted so far."""
        draw_curves(self.epochs(), self.picture)


def draw_curves(epochs: list[dict[str, Any]], picture: Path) -> None:
    """One panel per number that training or validation reports, over the epochs; UserError if the disk is full."""
    curves: dict[str, dict[str, dict[int, float]]] = {}  # of a quantity, then in training and validation, by epoch
    for part in 'train', 'val':
        for record in epochs:
            for quantity, value in record.get(part, {}).items():
                if isinstance(value, float):
                    curves.setdefault(quantity, {}).setdefault(part, {})[record['epoch'] + 1] = value
    if not curves:
        return
    rows, columns = -(-len(curves) // 4), min(4, len(curves))
    figure = Figure(figsize=(4 * columns, 3 * rows), layout='tight')
    for place, (quantity, parts) in enumerate(curves.items(), 1):
        panel = figure.add_subplot(rows, columns, place)
        for part, points in parts.items():
            panel.plot(list(points), list(points.values()), marker='.', label=part, color=COLORS[part])
        panel.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        panel.set(title=quantity, xlabel='epochs done', ylim=(0, None))
        panel.grid(alpha=0.3)
        if place == 1:
            panel.legend()
    write_figure(figure, picture, dots_per_inch=100)


def git_commit() -> str | None:
    """The commit of this checkout, `-dirty` behind it if files were changed; None outside git."""
    command = ['git', '-C', str(ROOT), 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def _pair(last_and_average: list[float]) -> str:
    return '{:.3f} ({:.3f})'.format(*last_and_average)
