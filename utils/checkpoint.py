"""Checkpoint files: the one place that reads them and the one that writes them.

A file is a dict with the reference's keys (epoch, arch, state_dict, optimizer, best_err1) and ours
(task, classes, seed, scaler, position, processes). Files of 2019 hold only some of them; bare state dicts hold none.
"""

import glob
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError

# NumPy scalars (a best error, say) are data; every other class in a pickle is refused.
# Files written with NumPy 1 name its old module.
NUMPY_SCALARS = [
    np.dtype,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefd'},
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (np._core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
]


@dataclass
class Checkpoint:
    """What a checkpoint file holds; None where it does not say."""

    path: Path
    state_dict: dict[str, Tensor]
    epoch: int = 0
    arch: str | None = None
    optimizer: dict[str, Any] | None = None
    task: str | None = None
    classes: list[str] | None = None
    seed: int | None = None
    scaler: dict[str, Any] | None = None
    position: dict[str, Any] | None = None
    processes: list[dict[str, Any]] | None = None  # of a job of several: what each has of its own
    best: dict[str, float] = field(default_factory=dict)  # such as {'best_err1': 22.5}


def read(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint of any age onto the CPU without executing anything in it.

    `module.`, which DataParallel puts before every name, is taken off. Raises UserError for a file that is missing,
    damaged, no checkpoint, or whose pickle holds anything but tensors, plain values and NumPy scalars.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: a {type(content).__name__}, not a checkpoint')
    if 'state_dict' not in content:
        content = {'state_dict': content}
    known = {name: content[name] for name in Checkpoint.__dataclass_fields__ if content.get(name) is not None}
    known['state_dict'] = _without_module(path, content['state_dict'])
    known['best'] = {name: float(value) for name, value in content.items() if name.startswith('best_')}
    return Checkpoint(**{**known, 'path': path, 'epoch': int(content.get('epoch', 0))})


def write(content: Mapping[str, Any], *paths: Path) -> None:
    """Write `content` to each path so that a process killed at any instant leaves the old file or the new one, whole.

    Once all are written they are put in place, in this order. Raises UserError when one cannot be written (a full disk,
    a read-only folder); the old files stay.
    """
    temporary = {path: path.with_name(f'{path.name}.{os.getpid()}.tmp') for path in paths}
    try:
        for path in paths:
            _save(content, temporary[path])
        for path in paths:
            os.replace(temporary[path], path)
            _sync_folder(path.parent)
    except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
        raise UserError(f'cannot write {path}: {error}') from error
    finally:
        with suppress(OSError):
            for leftover in temporary.values():
                leftover.unlink(missing_ok=True)


def remove_leftovers(paths: Iterable[Path]) -> None:
    """Remove what was half written of these files when a process was killed; nobody may be writing them."""
    for path in paths:
        for leftover in path.parent.glob(f'{glob.escape(path.name)}.*.tmp'):
            leftover.unlink(missing_ok=True)


def state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict of a bare model under the names the reference saved, from within DataParallel."""
    return {f'module.{name}': value for name, value in model.state_dict().items()}


def _save(content: Mapping[str, Any], path: Path) -> None:
    with open(path, 'wb') as file:
        torch.save(dict(content), file)
        file.flush()
        os.fsync(file.fileno())


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f'no checkpoint at {path}')
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            return torch.load(path, map_location='cpu', weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(_refusal(path, str(error))) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f'{path}: not a PyTorch checkpoint, or a damaged one ({error})') from error


def _refusal(path: Path, message: str) -> str:
    refused = re.search(r'GLOBAL ([\w.]+)', message)
    if refused:
        return f'{path}: refused, its pickle names {refused[1]}, which is neither a tensor nor a plain value'
    return f'{path}: not a PyTorch checkpoint, or a damaged one'


def _without_module(path: Path, state: Any) -> dict[str, Tensor]:
    is_state = isinstance(state, Mapping) and state and all(isinstance(value, Tensor) for value in state.values())
    if not is_state:
        raise UserError(f'{path}: holds no state_dict of named tensors')
    wrapped = all(name.startswith('module.') for name in state)
    return {name.removeprefix('module.') if wrapped else name: value for name, value in state.items()}


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
