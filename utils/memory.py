"""Memory of a process: what is freed is kept for reuse, and how much it has held at most."""

import ctypes
import platform
import resource
import sys
from pathlib import Path

import torch

STATUS = Path('/proc/self/status')
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the peak of what PyTorch allocated there, else of what the whole process had resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else peak_resident()


def peak_resident() -> int:
    """Linux's own account of this program, where there is one: getrusage's includes the process that launched it."""
    if STATUS.exists():
        lines = dict(line.split(':', 1) for line in STATUS.read_text().splitlines())
        return int(lines['VmHWM'].removesuffix('kB')) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)


def keep_freed_memory(device: torch.device) -> None:
    """For nets on a CPU: let glibc give freed memory to the next tensor instead of back to the system.

    By default it does that from 32 MiB on. Then every large feature map is of new pages, each of which the kernel has
    to clear first, which takes a fifth of the time (docs/speed.md).
    """
    if device.type == 'cpu' and platform.libc_ver()[0] == 'glibc':
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, -1)  # never
