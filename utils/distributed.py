"""Processes of one job: how they meet, and what they tell each other. In a single process nothing happens."""

import os
import re
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn
from urllib.parse import urlsplit
from uuid import uuid4

import torch
from torch import Tensor, distributed
from torch.distributed import Store
from torch.distributed.rendezvous import rendezvous

from utils.errors import UserError, named, tell

LOCAL = 'tcp://127.0.0.1:23456'  # where processes of one machine meet if nobody says: apex.parallel.multiproc
# What each process may have of its own; whether all see the same files is checked where they are read.
OWN_ARGUMENTS = {'rank', 'device', 'gpu', 'workers', 'data', 'output', 'resume', 'pretrained', 'dist_url'}
# Of a process that is gone gloo and the store in a file tell by plain RuntimeErrors.
LOST = re.compile('gloo/transport|pair closure|Wait timeout|Timeout waiting for key')


@contextmanager
def job(args: Namespace) -> Iterator[None]:
    """Meet the other processes that torch.distributed.run, or --world-size and --rank, tell of, if they do.

    A UserError within, or the loss of another process, is printed and ends this process at once.
    """
    launched = {'RANK', 'WORLD_SIZE'} <= os.environ.keys()
    world = int(os.environ['WORLD_SIZE']) if launched else args.world_size
    number = int(os.environ['RANK']) if launched else args.rank
    if world == 1:
        yield
        return
    if number is None or number >= world:
        raise UserError(f'--world-size {world} needs a --rank from 0 to {world - 1} in each process')
    address = args.dist_url or ('env://' if launched else LOCAL)
    message = f'process {number} of {world} ({address}) cannot go on without the others'
    try:
        with _limited(args.dist_timeout, message):
            store = _meet(args, number, world, address)
        watchdog = Watchdog(store, number, world, args.dist_timeout, message)
        check_same_arguments(args)
        yield
        watchdog.stop()
        all_gather_object(None)  # nobody ends, and is missed, before all have stopped watching
    except UserError as error:
        _leave(error)
    except RuntimeError as error:
        if not (isinstance(error, distributed.DistError) or LOST.search(str(error))):
            raise
        _leave(UserError(f'{message}; one of them ended or was silent for --dist-timeout: {error}'))
    except SystemExit:
        watchdog.stop()
        distributed.destroy_process_group()
        raise
    else:
        distributed.destroy_process_group()


def check_same_arguments(args: Namespace) -> None:
    """UserError that names an argument which processes were given differently, unless each may have its own."""
    given = all_gather_object({name: str(value) for name, value in vars(args).items() if name not in OWN_ARGUMENTS})
    with together():
        for name, value in given[0].items():
            other = next((number for number, own in enumerate(given) if own.get(name) != value), None)
            if other is not None:
                flag = f'--{name.replace("_", "-")}'
                raise UserError(f'processes 0 and {other} differ in {flag}: {value} and {given[other].get(name)}')


@contextmanager
def _limited(seconds: float, message: str) -> Iterator[None]:
    """End this process with an error if what is done within takes longer, as where an address takes no answer."""
    error = UserError(f'{message}; they did not meet within --dist-timeout')
    timer = threading.Timer(seconds + 5, _leave, [error])  # what meets has limits of its own, which tell more
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class Watchdog:
    """Ends this process with a line when another has been silent for half of the timeout.

    A thread of its own tells the others through the store that this process lives: the main one may be stuck where
    no error reaches it, behind a GPU's operations that wait for a process that is gone. Another one judges: the first
    may wait for an answer of a store whose process is gone.
    """

    def __init__(self, store: Store, number: int, world: int, timeout: float, message: str):
        # A connection of its own: the main thread may be waiting for an answer on the other.
        self.store, self.number, self.timeout, self.message = store.clone(), number, timeout, message
        self.beats = dict.fromkeys(range(world), (-1, time.monotonic()))  # count and moment of each one's last
        self.stopped = threading.Event()
        self.threads = [threading.Thread(target=run, daemon=True) for run in (self._exchange, self._judge)]
        for thread in self.threads:
            thread.start()

    def stop(self) -> None:
        """Watch no longer."""
        self.stopped.set()
        for thread in self.threads:
            thread.join(1)

    def _exchange(self) -> None:
        while not self.stopped.wait(min(self.timeout / 10, 5)):
            with suppress(RuntimeError):  # the store ended with the process that kept it: then all are silent
                self.store.add(f'beats of {self.number}', 1)
                for number, (before, _) in self.beats.items():
                    count = self.store.add(f'beats of {number}', 0)
                    if count != before:
                        self.beats[number] = count, time.monotonic()

    def _judge(self) -> None:
        while not self.stopped.wait(min(self.timeout / 10, 5)):
            silent = [n for n, (_, last) in self.beats.items() if time.monotonic() - last > self.timeout / 2]
            if silent and not self.stopped.is_set():
                _leave(UserError(f'{self.message}; process {named(silent)} was silent for half of --dist-timeout'))


LEAVING = threading.Lock()  # never released: of main thread and watchdog, only the first prints an error


def _leave(error: UserError) -> NoReturn:
    """Print the error and exit at once: Python's own exit would wait for communication that never ends."""
    LEAVING.acquire()
    tell(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)


def _meet(args: Namespace, number: int, world: int, address: str) -> Store:
    """Join the others; the store they share."""
    on_gpus = args.device in ('auto', 'cuda') and torch.cuda.is_available()
    if on_gpus:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', number)) % torch.cuda.device_count())
    backend = args.dist_backend or ('nccl' if on_gpus else 'gloo')
    if backend == 'nccl' and not on_gpus:
        raise UserError('--dist-backend nccl needs GPUs, and none is used here: gloo works everywhere')
    timeout = timedelta(seconds=args.dist_timeout)
    store = _rendezvous(address, number, world, timeout)
    store = distributed.PrefixStore(_agree_on_prefix(store, number, world), store)
    # NCCL cannot send what is not on a GPU.
    backend = 'cpu:gloo,cuda:nccl' if backend == 'nccl' else backend
    distributed.init_process_group(backend, store=store, rank=number, world_size=world, timeout=timeout)
    return store


def _rendezvous(address: str, number: int, world: int, timeout: timedelta) -> Store:
    try:
        parts = urlsplit(address)
        if parts.scheme == 'file' and not Path(parts.path).parent.is_dir():
            raise UserError(f'--dist-url {address}: no such folder')  # for which torch would wait five minutes
        store, *_ = next(rendezvous(address, number, world, timeout=timeout))
        store.set_timeout(timeout)  # which a FileStore does not take from rendezvous
        return store
    except distributed.DistError:  # nobody came: the address itself was understood
        raise
    except (RuntimeError, ValueError, AssertionError) as error:  # what torch finds wrong with an address
        raise UserError(f'--dist-url {address}: {error}; processes meet at tcp://HOST:PORT') from error


def _agree_on_prefix(store: Store, number: int, world: int) -> str:
    """A word for what these processes keep in the store, where those that a launcher has replaced have left their own.

    It is the first one's, who waits for an answer of each other one and repeats it: a word that is left of an earlier
    start gets no such echo. Launchers' counts of restarts would not do. Of several machines' only the one counts whose
    process failed, and the others that it made start theirs anew do not.
    """
    own = uuid4().hex
    if number == 0:
        store.set('prefix', own)
        for other in range(1, world):
            store.set(f'{own} echo {other}', store.get(f'{own} {other}'))
        return own
    while True:  # until _limited ends it
        prefix = store.get('prefix').decode()
        store.set(f'{prefix} {number}', own)
        time.sleep(0.1)
        echo = f'{prefix} echo {number}'
        if store.check([echo]) and store.get(echo).decode() == own:
            return prefix


@contextmanager
def together() -> Iterator[None]:
    """A UserError within, in any process, ends all of them and is printed once. Nothing within may wait for others."""
    error = None
    try:
        yield
    except UserError as raised:
        error = raised
    failed = all_gather_object(error is not None)
    if any(failed):
        raise error if failed.index(True) == rank() else SystemExit(1)


def check_same(value: Any, message: str) -> None:
    """UserError with the first process's message unless all processes have equal values."""
    values = all_gather_object(value)
    with together():
        if any(other != values[0] for other in values):
            raise UserError(message)


def rank() -> int:
    """The number of this process, from 0; the first one reports and writes."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def is_main_process() -> bool:
    """Whether this process is the one that reports and writes, the first."""
    return rank() == 0


def is_distributed() -> bool:
    """Whether this process is one of several of a job."""
    return world_size() > 1


def all_reduce_sum(value: Tensor) -> Tensor:
    """The sum of every process's `value`, of one shape everywhere."""
    if is_distributed():
        value = value.clone()
        distributed.all_reduce(value)
    return value


def all_gather_rows(rows: Tensor) -> Tensor:
    """All processes' rows, N x ... with an N of their own, one process after the other."""
    return torch.cat([part.to(rows.device) for part in all_gather_object(rows.cpu())]) if is_distributed() else rows


def all_reduce_mean(values: Iterable[Tensor]) -> None:
    """Replace the values, those that are not counts, by their means over the processes."""
    values = [value for value in values if value.is_floating_point()]
    if is_distributed() and values:
        means = torch.cat([value.flatten().double() for value in values])  # so that the mean of equal ones is the same
        distributed.all_reduce(means)
        parts = (means / world_size()).split([value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view_as(value))


def all_gather_object(value: Any) -> list[Any]:
    """Every process's `value`, in the order of their numbers."""
    values = [value] * world_size()
    if is_distributed():
        distributed.all_gather_object(values, value)
    return values


def mean_of_results(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The mean of every number in results that differ in nothing else."""
    first = results[0]
    if isinstance(first, dict):
        return {name: mean_of_results([result[name] for result in results]) for name in first}
    if isinstance(first, list):
        return [mean_of_results(list(column)) for column in zip(*results, strict=True)]
    if isinstance(first, float):
        return sum(results) / len(results)
    return first
