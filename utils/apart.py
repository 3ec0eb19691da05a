"""Steps done in processes of their own: none is charged with another's memory, none has another's settings."""

import multiprocessing
import signal
from collections.abc import Callable
from contextlib import suppress
from multiprocessing.connection import Connection

import torch

from utils.errors import UserError
from utils.memory import peak_memory

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
