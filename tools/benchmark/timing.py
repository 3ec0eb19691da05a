"""Ways to do the same thing, timed in turns: a machine that slows down for a while slows all of them."""

import multiprocessing
import re
import signal
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from utils.errors import UserError

STATUS = Path('/proc/self/status')
Step = Callable[[], object]


def interleaved(turns: Mapping[str, Callable[[], float]], rounds: int, warm_up: int) -> dict[str, list[float]]:
    """The seconds that each turn returns in each round, after `warm_up` rounds that do not count."""
    done = [{name: turn() for name, turn in turns.items()} for _ in range(warm_up + rounds)]
    return {name: [seconds[name] for seconds in done[warm_up:]] for name in turns}


def rates(amount: float, seconds: Sequence[float]) -> dict[str, float]:
    """How much of `amount` is done in a second: the median over the rounds, the lowest and the highest."""
    middle, most, least = statistics.median(seconds), max(seconds), min(seconds)
    return {'median': amount / middle, 'lowest': amount / most, 'highest': amount / least}


def in_words(row: dict[str, Any], digits: int) -> str:
    """Median and range."""
    return f'{row["median"]:.{digits}f} ({row["lowest"]:.{digits}f} to {row["highest"]:.{digits}f})'


class Apart:
    """make_step(*args) in a process of its own, to be called step by step; a context, at whose end the process ends.

    `peak` has the bytes that everything took up to the last step's end, beyond what a process needs anyway. `make_step`
    must be a function of a module, and `args` what can be pickled. UserError that begins with `name` and
    tells why where it fails: nets meet sizes that they cannot take, and machines have only so much memory.
    """

    # Not a ProcessPoolExecutor: its worker outlives a parent that is killed, and does not tell how it ended itself.
    def __init__(self, name: str, make_step: Callable[..., Step], device: torch.device, *args):
        self.name, self.peak = name, 0
        context = multiprocessing.get_context('spawn')
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make_step, device, args), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self) -> float | None:
        """Do a step; what it returns, a number if anything."""
        try:
            with suppress(BrokenPipeError):  # it may have failed before it was asked: it has said why
                self.connection.send('step')
            error, result, self.peak = self.connection.recv()
        except (EOFError, OSError):
            self.process.join()
            code = self.process.exitcode
            error = f'its process ended with exit code {code}'
            error += ' (killed, perhaps for want of memory)' * (code == -signal.SIGKILL)
        if error:
            raise UserError(f'{self.name}: {error}')
        return result

    def __enter__(self) -> 'Apart':
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, make_step: Callable[..., Step], device: torch.device, args: tuple) -> None:
    """Do a step whenever asked, until nobody asks any more; tell the reason, and end, when one fails."""
    with suppress(OSError, KeyboardInterrupt):  # nobody is there to be told
        try:
            before = peak_memory(device)
            step = make_step(*args)
            while connection.recv():
                result = step()
                connection.send((None, result, peak_memory(device) - before))
        except Exception as error:
            connection.send((str(error) or type(error).__name__, None, 0))


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the peak of what PyTorch allocated there, else of what the whole process had resident."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    if STATUS.exists():  # Linux's own account of this program: getrusage's includes the process that launched it
        return int(re.search(r'VmHWM:\s*(\d+) kB', STATUS.read_text())[1]) * 1024
    import resource  # which Windows lacks

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
