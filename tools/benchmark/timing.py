"""Ways to do the same thing, timed in turns: a machine that slows down for a while slows all of them."""

import multiprocessing
import resource
import signal
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError


def interleaved(
    ways: Mapping[str, Callable[[], object]],
    rounds: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
    timed: bool = False,  # whether the ways return their seconds themselves
) -> dict[str, list[float]]:
    """Seconds of each way in each round, after `warm_up` rounds that do not count."""
    seconds = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name, run in ways.items():
            start = clock()
            result = run()
            if number >= warm_up:
                seconds[name].append(result if timed else clock() - start)
    return seconds


def rates(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """How much of `amount` is done in a second: the median over the rounds, the lowest and the highest."""
    return {
        'median': amount / statistics.median(seconds),
        'lowest': amount / max(seconds),
        'highest': amount / min(seconds),
    }


def in_words(row: dict[str, Any], digits: int) -> str:
    """Median and range."""
    return f'{row["median"]:.{digits}f} ({row["lowest"]:.{digits}f} to {row["highest"]:.{digits}f})'


STATUS = Path('/proc/self/status')
Step = Callable[[], object]


class Apart:
    """make_step(*args) in a process of its own, to be called step by step; a context, at whose end the process ends.

    `make_step` must be a function of a module, and `args` what can be pickled. UserError that begins with `name` and
    tells why where it fails: nets meet sizes that they cannot take, and machines have only so much memory.
    """

    def __init__(self, name: str, make_step: Callable[..., Step], device: torch.device, *args):
        self.name = name
        context = multiprocessing.get_context('spawn')
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make_step, device, args), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self) -> float | None:
        """Do a step; what it returns, a number if anything."""
        return self._ask('step')

    def peak(self) -> int:
        """Bytes that everything has taken so far, beyond what a process needs anyway."""
        return self._ask('peak')

    def _ask(self, what: str) -> float | None:
        try:
            with suppress(BrokenPipeError):  # it may have failed before it was asked: it has said why
                self.connection.send(what)
            answer = self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise UserError(f'{self.name}: its process ended with {_end(self.process.exitcode)}') from error
        if isinstance(answer, str):
            raise UserError(f'{self.name}: {answer}')
        return answer

    def __enter__(self) -> 'Apart':
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()
        self.process.join()


def _end(code: int) -> str:
    return f'exit code {code}' + ' (killed, perhaps for want of memory)' * (code == -signal.SIGKILL)


def _serve(connection: Connection, make_step: Callable[..., Step], device: torch.device, args: tuple) -> None:
    """Answer until nobody asks any more; with the reason, and nothing after it, when a step fails."""
    with suppress(OSError, KeyboardInterrupt):  # nobody is there to be told
        try:
            _answer(connection, make_step, device, args)
        except Exception as error:
            connection.send(str(error) or type(error).__name__)


def _answer(connection: Connection, make_step: Callable[..., Step], device: torch.device, args: tuple) -> None:
    before = peak_memory(device)
    step = make_step(*args)
    while True:
        if connection.recv() == 'step':
            connection.send(step())
        else:
            connection.send(peak_memory(device) - before)


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the peak of what PyTorch allocated there, else of what the whole process had resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else peak_resident()


def peak_resident() -> int:
    """Linux's own account of this program, where there is one: getrusage's includes the process that launched it."""
    if STATUS.exists():
        lines = dict(line.split(':', 1) for line in STATUS.read_text().splitlines())
        return int(lines['VmHWM'].removesuffix('kB')) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
