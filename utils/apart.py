"""Steps done in processes of their own: none is charged with another's memory, none has another's settings."""

import multiprocessing
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from utils.memory import peak_memory

Step = Callable[[], object]


class Apart:
    """make_step(*args) in a process of its own, to be called step by step; a context, at whose end the process ends.

    `make_step` must be a function of a module, and `args` what can be pickled. ChildProcessError where it fails.
    """

    def __init__(self, make_step: Callable[..., Step], device: torch.device, *args):
        context = multiprocessing.get_context('spawn')
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=_serve, args=(theirs, make_step, device, args), daemon=True)
        self.process.start()
        theirs.close()

    def __call__(self) -> None:
        """Do a step."""
        self._ask('step')

    def peak(self) -> int:
        """Bytes that everything has taken so far, beyond what a process needs anyway."""
        return self._ask('peak')

    def _ask(self, what: str) -> int | None:
        try:
            self.connection.send(what)
            return self.connection.recv()
        except (EOFError, OSError) as error:
            self.process.join()
            raise ChildProcessError(f'a step ended its process, with exit code {self.process.exitcode}') from error

    def __enter__(self) -> 'Apart':
        return self

    def __exit__(self, *_) -> None:
        self.connection.close()
        self.process.join()


def _serve(connection: Connection, make_step: Callable[..., Step], device: torch.device, args: tuple) -> None:
    before = peak_memory(device)
    step = make_step(*args)
    with suppress(EOFError, KeyboardInterrupt):
        while True:
            if connection.recv() == 'step':
                step()
                connection.send(None)
            else:
                connection.send(peak_memory(device) - before)
