"""Checks of jobs: two processes of this file, by NCCL where there are two GPUs, else by gloo.

    python -m tools.check_gpu.processes WHAT FOLDER ...         is one of them; the checks start it
"""

import os
import socket
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor, distributed

from models.norm import freeze_bn_layers, train_with_frozen_bn
from tools.check_gpu.nets import compute_of, filled, gradients_of, noise, noise_set, training_step_of
from tools.check_gpu.result import Result, at_most, distance
from tools.check_gpu.ways import SIDE
from utils.cli import Parser, add_device_argument, add_distributed_arguments
from utils.device import Compute
from utils.distributed import job, rank, world_size
from utils.loader import DeviceLoader, TrainBatchSampler, available_cores

ROOT = Path(__file__).parent.parent.parent
LIMIT = 120  # seconds after which a process hangs


def two_processes(device: torch.device) -> Result:
    """Each with half of a batch, they have the gradients of one with all of it, in buckets, and share the cores."""
    with TemporaryDirectory() as folder, started('gradients', device, folder, timeout=60) as processes:
        errors = [process.communicate(timeout=LIMIT)[1] for process in processes]
        if any(process.returncode for process in processes):
            raise RuntimeError(''.join(errors))
        found = [torch.load(Path(folder, f'{number}.pt')) for number in range(2)]
    expected = [gradient.cpu() for gradient in gradients(compute_of(device))]
    errors = {f'gradients of process {n}': distance(part['gradients'], expected) for n, part in enumerate(found)}
    result, cores = at_most(1e-10, errors), max(available_cores(), 2)
    buckets, workers = found[0]['memories'], sum(part['workers'] for part in found)
    holds = result.holds and buckets < len(expected) and workers <= cores
    measured = f'{len(expected)} gradients in {buckets} buckets, {workers} workers, {backend(device)}'
    return Result(holds, f'{result.measured}, {measured}', f'{result.bound}, fewer buckets, at most {cores} workers')


def a_dead_peer_ends_the_other(device: torch.device, timeout: int = 30) -> Result:
    """With one line and within --dist-timeout, though it is stuck: by NCCL behind a sum with the dead one."""
    with started('stuck', device, '', timeout) as processes:
        for process in processes:
            process.stdout.readline()  # both have met
        processes[1].kill()
        processes[1].wait()
        start = time.monotonic()
        errors = processes[0].communicate('go on\n', timeout=LIMIT)[1]
        seconds = time.monotonic() - start
    lines = [line for line in errors.splitlines() if line.startswith('error: process 0 of 2')]
    holds = processes[0].returncode == 1 and len(lines) == 1 and seconds <= timeout
    measured = f'{seconds:.0f} s, status {processes[0].returncode}, {len(lines)} line, {backend(device)}'
    return Result(holds, measured, f'at most {timeout} s, status 1, 1 line')


def backend(device: torch.device) -> str:
    """What the two talk through."""
    return 'nccl' if device.type == 'cuda' and torch.cuda.device_count() > 1 else 'gloo'


@contextmanager
def started(what: str, device: torch.device, folder: str, timeout: int) -> Iterator[list[subprocess.Popen]]:
    """Two processes, of which none is left."""
    with socket.create_server(('127.0.0.1', 0)) as free:
        address = f'tcp://127.0.0.1:{free.getsockname()[1]}'
    shared = f'--device {device.type} --dist-backend {backend(device)} --dist-timeout {timeout} --world-size 2'.split()
    command = [sys.executable, '-m', 'tools.check_gpu.processes', what, folder, '--dist-url', address, *shared]
    pipes, text = dict.fromkeys(('stdin', 'stdout', 'stderr'), subprocess.PIPE), {'text': True, 'cwd': ROOT}
    processes = []
    for number in '01':
        environment = os.environ | {'LOCAL_WORLD_SIZE': '2', 'LOCAL_RANK': number}
        processes.append(subprocess.Popen([*command, '--rank', number], env=environment, **pipes, **text))
    try:
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def main(args: Namespace) -> None:
    """Be one of two processes."""
    with job(args):
        compute = Compute(args.device)
        if args.what == 'stuck':
            be_stuck(compute.device, args.dist_backend)
        own = gradients(compute, rank(), world_size())
        memories = len({gradient.untyped_storage().data_ptr() for gradient in own})
        loader = DeviceLoader(noise_set('imagenet', 4, 32), TrainBatchSampler(4, 2, 0), compute, workers=1000)
        found = {'gradients': [gradient.cpu() for gradient in own], 'memories': memories}
        torch.save(found | {'workers': loader.loader.num_workers}, Path(args.folder, f'{rank()}.pt'))


def gradients(compute: Compute, share: int = 0, shares: int = 1) -> list[Tensor]:
    """Those of a share of a batch, summed with the others', in float64 and with frozen batch norms."""
    model = freeze_bn_layers(filled('resnext', 9, dtype=torch.float64))
    train_with_frozen_bn(model)
    images = noise(8, 3, SIDE, SIDE, dtype=torch.float64).tensor_split(shares)[share]
    return gradients_of(training_step_of(model, compute), images)


def be_stuck(device: torch.device, backend: str) -> None:
    """Meet the other, and once told to go on wait for it for ever."""
    values = torch.ones(1, device=device)
    distributed.all_reduce(values)
    print('met', flush=True)
    sys.stdin.readline()
    if backend == 'nccl':  # gloo would tell at once
        distributed.all_reduce(values)
        values.item()
    time.sleep(1000)


if __name__ == '__main__':
    parser = Parser(__doc__)
    parser.add_argument('what', choices=['gradients', 'stuck'], help='what the processes do')
    parser.add_argument('folder', help='where their results are left')
    add_distributed_arguments(parser)
    add_device_argument(parser.add_argument)
    main(parser.parse_args())
