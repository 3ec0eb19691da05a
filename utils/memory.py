"""The most memory that a process has held."""

import resource
import sys
from pathlib import Path

import torch

STATUS = Path('/proc/self/status')


def peak_memory(device: torch.device) -> int:
    """Bytes: on a GPU the peak of what PyTorch allocated there, else of what the whole process had resident."""
    return torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else peak_resident()


def peak_resident() -> int:
    """Linux's own account of this program, where there is one: getrusage's includes the process that launched it."""
    if STATUS.exists():
        lines = dict(line.split(':', 1) for line in STATUS.read_text().splitlines())
        return int(lines['VmHWM'].removesuffix('kB')) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == 'darwin' else 1024)
