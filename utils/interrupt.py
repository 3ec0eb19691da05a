"""Stopping a run without losing work: SIGTERM and Ctrl-C are noted, and obeyed where the state is consistent."""

import os
import signal
import threading
from types import FrameType


class Stopped(SystemExit):
    """Ends the process with 143 (SIGTERM) or 130 (Ctrl-C), as if the signal had killed it."""


class StopRequest:
    """Context in which the first SIGTERM or Ctrl-C is noted and a second one kills the process at once."""

    signals = (signal.SIGTERM, signal.SIGINT)

    def __init__(self):
        self.received: int | None = None

    def __enter__(self) -> 'StopRequest':
        self._before = {number: signal.signal(number, self._note) for number in self.signals}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise Stopped if a signal came; called only where stopping loses nothing."""
        if self.received is not None:
            raise Stopped(128 + self.received)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.received is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.received = number


def obey_parent_only(_: int) -> None:
    """For a DataLoader's workers: a signal meant for all processes must not take them from a run about to save.

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
