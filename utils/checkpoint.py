"""Checkpoint files: the one place that reads them and the one that writes them.

A file is a dict with the reference's keys (epoch, arch, state_dict, optimizer, best_err1) and ours (task, classes,
seed, scaler, position, smooth_loss, processes). Files of 2019 hold only some of them; bare state dicts hold none.
"""

import glob
import os
import pickle
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from math import isfinite
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, named

# NumPy scalars (a best error, say) are data; every other class in a pickle is refused.
# Files written with NumPy 1 name its old module.
NUMPY_SCALARS = [
    np.dtype,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefd'},
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (np._core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
]
# What the values must be that are not None; the optimizer's form is looked at when it is needed.
KINDS = {
    'arch': (str, 'a name'),
    'task': (str, 'a name'),
    'classes': (list, 'a list of names'),
    'seed': (Integral, 'a whole number'),
    'scaler': (dict, 'a dict'),
    'position': (dict, 'a dict'),
    'smooth_loss': (Real, 'a number'),
    'processes': (list, 'a list'),
}


@dataclass
class Checkpoint:
    """What a checkpoint file holds; None where it does not say."""

    path: Path
    state_dict: dict[str, Tensor]
    epoch: int | None = None
    arch: str | None = None
    optimizer: dict[str, Any] | None = None
    task: str | None = None
    classes: list[str] | None = None
    seed: int | None = None
    scaler: dict[str, Any] | None = None
    position: dict[str, Any] | None = None
    smooth_loss: float | None = None  # segmentation's exponential average, which goes on over epochs
    processes: list[dict[str, Any]] | None = None  # of a job of several: what each has of its own
    best: dict[str, float] = field(default_factory=dict)  # such as {'best_err1': 22.5}


def read(path: str | os.PathLike) -> Checkpoint:
    """Read a checkpoint of any age onto the CPU without executing anything in it.

    `module.`, which DataParallel puts before every name, is taken off. Raises UserError for a file that is missing,
    damaged, no checkpoint, whose pickle holds anything but tensors, plain values and NumPy scalars, or whose values are
    of other kinds than ours.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: a {type(content).__name__}, not a checkpoint')
    if 'state_dict' not in content:
        content = {'state_dict': content}
    known = {name: content[name] for name in Checkpoint.__dataclass_fields__ if content.get(name) is not None}
    known['state_dict'] = _without_module(path, content['state_dict'])
    known['best'] = _best(content)
    _check_kinds(path, known)
    if 'epoch' in known:
        known['epoch'] = _epoch(path, known['epoch'])
    return Checkpoint(**{**known, 'path': path})


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
    if not (isinstance(state, Mapping) and state and all(map(_is_named_tensor, state.items()))):
        raise UserError(f'{path}: holds no state_dict of named tensors')
    wrapped = all(name.startswith('module.') for name in state)
    return {name.removeprefix('module.') if wrapped else name: value for name, value in state.items()}


def _is_named_tensor(item: tuple[Any, Any]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def _best(content: Mapping[str, Any]) -> dict[str, float]:
    best = {name: _number(value) for name, value in content.items() if str(name).startswith('best_')}
    return {name: value for name, value in best.items() if value is not None}


def _epoch(path: Path, value: Any) -> int:
    number = _number(value)
    if number is None or not isfinite(number):
        raise UserError(f'{path}: its epoch is no number but {value!r:.40}')
    return int(number)


def _number(value: Any) -> float | None:
    """A number of Python's or NumPy's or in a tensor; None for anything else."""
    is_number = isinstance(value, Real) or isinstance(value, Tensor) and value.numel() == 1
    return float(value) if is_number else None


def _check_kinds(path: Path, known: Mapping[str, Any]) -> None:
    for name, (kind, words) in KINDS.items():
        if name in known and not isinstance(known[name], kind):
            raise UserError(f'{path}: its {name} is a {type(known[name]).__name__}, not {words}')
    if 'position' in known:
        _check_keys(path, 'position', known['position'], ('step', 'plan', 'metrics'))
    for process in known.get('processes', ()):
        _check_keys(path, 'processes', process, ('statistics', 'metrics'))


def _check_keys(path: Path, name: str, value: Any, keys: tuple[str, ...]) -> None:
    missing = [key for key in keys if not isinstance(value, dict) or key not in value]
    if missing:
        raise UserError(f'{path}: its {name} has no {named(missing)}')


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
