"""Stopping a run without losing work: SIGTERM and Ctrl-C are noted, and obeyed where the state is consistent."""

import os
import signal
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


def ignore_in_worker(_: int) -> None:
    """For a DataLoader's workers: a signal to the whole process group must not take them from a run about to save."""
    for number in StopRequest.signals:
        signal.signal(number, signal.SIG_IGN)
