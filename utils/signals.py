"""Stopping a run without losing work: SIGTERM and Ctrl-C are noted, and obeyed where the state is consistent.

The processes of a job obey at the same step, whichever of them was told: each check starts to exchange what each knows
and acts on what the check before exchanged, so nobody waits.
"""

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from types import FrameType

import torch
from torch import Tensor, distributed

from utils.distributed import is_distributed


class Stopped(SystemExit):
    """Ends the process with 143 (SIGTERM) or 130 (Ctrl-C), as if the signal had killed it."""


class SignalHandler:
    """Context in which the first SIGTERM or Ctrl-C is noted and a second one kills the process at once."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received = 0  # number of the signal
        self.exchanged: tuple[distributed.Work, Tensor] | None = None

    def __enter__(self) -> 'SignalHandler':
        self._before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, kind: type[BaseException] | None, *_) -> None:
        if kind in (None, Stopped):
            self._finish_exchange()
        for number, handler in self._before.items():
            signal.signal(number, handler)
            if number == self.received and isinstance(getattr(handler, '__self__', None), SignalHandler):
                handler(number, None)  # a caller that has a handler of its own stops as well

    def check(self) -> None:
        """Raise Stopped if a signal came; called, by all processes, only where stopping loses nothing."""
        known = self._finish_exchange() if is_distributed() else self.received
        if known:
            raise Stopped(128 + known)
        if is_distributed():
            received = torch.tensor(self.received)
            self.exchanged = distributed.all_reduce(received, distributed.ReduceOp.MAX, async_op=True), received

    def _finish_exchange(self) -> int:
        if self.exchanged is None:
            return 0
        work, received = self.exchanged
        work.wait()
        self.exchanged = None
        return int(received)

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == self.received and 'TORCHELASTIC_RUN_ID' in os.environ:
            return  # Slurm tells processes and launcher, which tells them again
        if self.received:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number


def worker_init_fn(_: int) -> None:
    """Let a DataLoader's worker survive a signal to all processes: the run needs it until it has saved.

    SIGTERM from the parent, which ends its workers with it, still counts. (macOS cannot tell who sent a signal.)
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parents_sigterm, daemon=True).start()


def _await_parents_sigterm() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


def end_with_parent() -> None:
    """Have this process get SIGTERM once its parent is gone, however that ended."""
    threading.Thread(target=_await_parents_end, daemon=True).start()


def _await_parents_end() -> None:
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    os.kill(os.getpid(), signal.SIGTERM)
