"""Jobs of tests/job.py: forked, in milliseconds, from a server that has imported what they need, or really launched.

The forked ones meet as those of torch.distributed.run do, at a store that whoever starts them hosts. Ports are chosen
by the system: several runs of the tests can go on side by side.
"""

import multiprocessing
import os
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from torch.distributed import TCPStore

ROOT = Path(__file__).parent.parent
SMALL = '-a tiny -b 12 -g 2 --epochs 2 --lr 0.05 --image-size 32 -j 0 -p 1 --device cpu'.split()  # noqa: SIM905
HOST = '127.0.0.1'
LIMIT = 200  # seconds after which a process hangs, however busy the machine is
ENVIRONMENT = {'OMP_NUM_THREADS': '1', 'PYTHONPATH': str(ROOT)}


class Job:
    """Forked processes, each of arguments and an environment of its own; at the end of its context none is left."""

    def __init__(self, *members, store=None):
        self.store, self._folder, self._processes = store, TemporaryDirectory(), []
        for number, member in enumerate(members):
            files = [Path(self._folder.name, f'{number}.{kind}') for kind in ('out', 'errors')]
            for path in files:
                path.touch()
            self._processes.append(server().Process(target=_enter, args=(*member, *files)))
            self._processes[-1].start()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self._processes:
            process.kill()
            process.join()
        self._folder.cleanup()

    def out(self, number, kind='out'):
        """What process `number` has printed so far."""
        return Path(self._folder.name, f'{number}.{kind}').read_text()

    def send(self, number, signal, after):
        """Send process `number` a signal once the first one has printed a line that begins so."""
        limit = time.monotonic() + LIMIT
        while f'\n{after}' not in f'\n{self.out(0)}':
            assert self._processes[0].is_alive() and time.monotonic() < limit, self.out(0, 'errors')
            time.sleep(0.01)
        os.kill(self._processes[number].pid, signal)

    def end(self, count=None):
        """Exit statuses, negative those of signals, of the first so many or all, and what they wrote to stderr."""
        ended = self._processes[:count]
        for process in ended:
            process.join(LIMIT)
        return [process.exitcode for process in ended], [self.out(number, 'errors') for number in range(len(ended))]


def launch(world, *arguments, store=None, restart=0, own=None, **environment):
    """A job of so many processes with the environment of torch.distributed.run, each with its `own` last argument.

    They are as if on machines of their own, of which the first one's launcher counts a `restart`.
    """
    store = store or TCPStore(HOST, 0, is_master=True, wait_for_workers=False)
    told = environment | {'WORLD_SIZE': world, 'MASTER_ADDR': HOST, 'MASTER_PORT': store.port}
    told |= {'TORCHELASTIC_USE_AGENT_STORE': True}
    counts = [restart, *[0] * (world - 1)]
    own = [(argument,) for argument in own] if own else [()] * world
    numbers = [{'RANK': n, 'LOCAL_RANK': n, 'TORCHELASTIC_RESTART_COUNT': counts[n]} for n in range(world)]
    return Job(*[((*arguments, *own[n]), told | numbers[n]) for n in range(world)], store=store)


def run(world, *arguments, **options):
    """What the processes of a job printed, after it ended well."""
    with launch(world, *arguments, **options) as job:
        codes, errors = job.end()
        assert codes == [0] * world, errors
        return ''.join(map(job.out, range(world)))


def start(*arguments, cwd=ROOT, **environment):
    """An interpreter whose output can be read line by line, in a group of its own."""
    command, pipes = [sys.executable, *map(str, arguments)], {'stdout': -1, 'stderr': -1, 'text': True}
    environment = os.environ | ENVIRONMENT | environment
    return subprocess.Popen(command, cwd=cwd, env=environment, start_new_session=True, **pipes)


@cache
def server():
    """The context of the server that forks, started with its first process."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['tests.job'])
    with mock.patch.dict(os.environ, ENVIRONMENT):
        context.Process(target=torch.set_num_threads, args=(1,)).start()
    return context


def _enter(arguments, environment, out, errors):
    """Be what `python tests/job.py` is."""
    for number, path in (1, out), (2, errors):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), number)
    os.environ.update({name: str(value) for name, value in environment.items()})
    torch.set_num_threads(1)

    from tests import job

    job.main([*map(str, arguments)])
