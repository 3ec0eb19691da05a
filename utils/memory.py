"""Memory of a process: what is freed is kept for reuse, and how much it has held at most."""

import ctypes
import multiprocessing
import platform
import resource
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

STATUS = Path('/proc/self/status')
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def peak_of(make_step: Callable[..., Callable[[], object]], device: torch.device, *args) -> int:
    """Bytes that make_step(*args) and two calls of what it returns take beyond what a process needs anyway.

    They run in a process of their own: in this one they would be charged with what was done before. So `make_step`
    must be a function of a module, and `args` what can be pickled.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        return process.submit(_peak_here, make_step, device, *args).result()


def _peak_here(make_step: Callable[..., Callable[[], object]], device: torch.device, *args) -> int:
    before = peak_memory(device)
    step = make_step(*args)
    step()
    step()
    return peak_memory(device) - before


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the peak of what PyTorch allocated there, else of what the whole process had resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else peak_resident()


def peak_resident() -> int:
    """Linux's own account of this program, where there is one: getrusage's includes the process that launched it."""
    if STATUS.exists():
        lines = dict(line.split(':', 1) for line in STATUS.read_text().splitlines())
        return int(lines['VmHWM'].removesuffix('kB')) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def keep_freed_memory() -> None:
    """Let glibc give freed memory to the next tensor instead of back to the system, which it does by default from
    32 MiB on: then every large feature map is of new pages, each of which the kernel has to clear first."""
    if platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
