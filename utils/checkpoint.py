"""Checkpoint files: the one place that reads them and the one that writes them.

A file is a dict with the reference's keys (epoch, arch, state_dict, optimizer, best_err1) and ours (task, classes,
seed, scaler, position, smooth_loss, processes). Files of 2019 hold only some of them; bare state dicts hold none.
"""

import os
import pickle
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, reading
from utils.form import ANYTHING, COUNT, NAME, NUMBER, TENSOR, Kind, fault, leaves, plain

# NumPy scalars (a best error, say) are data; every other class in a pickle is refused.
# Files written with NumPy 1 name its old module.
NUMPY_SCALARS = [
    np.dtype,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefd'},
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (np._core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
]
# Epochs may be floats or tensors, counts of metrics have a form that only the task's metrics know, and the form of the
# optimizer, which other programs may have saved otherwise, is looked at when it is needed.
EPOCH = Kind(COUNT.words, lambda value: NUMBER.fits(value) and plain(value) % 1 == 0 and COUNT.fits(int(plain(value))))
COUNTED = Kind(
    'numbers', lambda value: all(leaf is None or TENSOR.fits(leaf) or NUMBER.fits(leaf) for _, leaf in leaves(value))
)
FORM = {
    'state_dict': {str: TENSOR},
    'epoch': EPOCH,
    'arch': NAME,
    'optimizer': ANYTHING,
    'task': NAME,
    'classes': [NAME],
    'seed': COUNT,
    'scaler': {str: NUMBER},
    'position': {'step': COUNT, 'plan': {str: COUNT}, 'metrics': COUNTED},
    'smooth_loss': NUMBER,
    'processes': [{'statistics': {str: TENSOR}, 'metrics': COUNTED}],
    'best': {str: NUMBER},
}
# Of the tensors of a file; not complex, and not quantized.
DTYPES = {
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
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
    of other kinds than ours or not finite.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise UserError(f'{path}: a {type(content).__name__}, not a checkpoint')
    if 'state_dict' not in content:
        content = {'state_dict': content}
    known = {name: content[name] for name in FORM if content.get(name) is not None}
    known['best'] = {name: value for name, value in content.items() if _is_best(name, value)}
    _check(path, known)
    return Checkpoint(
        **{
            **known,
            'path': path,
            'state_dict': _without_prefix(known['state_dict']),
            'epoch': int(plain(known['epoch'])) if 'epoch' in known else None,
            'best': {name: float(value) for name, value in known['best'].items()},
        }
    )


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


def remove_leftovers(folder: Path, are_own: Callable[[str], bool]) -> None:
    """Remove what was half written of files of own names when a process was killed; nobody may be writing them."""
    for path in folder.glob('*.tmp'):
        name, _, _ = path.name.removesuffix('.tmp').rpartition('.')  # between them the process's number
        if are_own(name):
            path.unlink(missing_ok=True)


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
    damaged = f'{path}: not a PyTorch checkpoint, or a damaged one'
    with reading(damaged), torch.serialization.safe_globals(NUMPY_SCALARS):
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r'GLOBAL ([\w.]+)', str(error))
            what = 'which is neither a tensor nor a plain value'
            told = f'{path}: refused, its pickle names {refused[1]}, {what}' if refused else damaged
            raise UserError(told) from error


def _check(path: Path, known: Mapping[str, Any]) -> None:
    """UserError that names the first value which is not as FORM says, or the first tensor that no net can hold."""
    wrong = fault(known.get('state_dict'), FORM['state_dict'], 'state_dict')
    if wrong or not known['state_dict']:
        raise UserError(f'{path}: holds no state_dict of named tensors: {wrong or "it is empty"}')
    for field_name, value in known.items():
        tensors = ((name, leaf) for name, leaf in leaves(value, field_name) if isinstance(leaf, Tensor))
        wrong = next((f'{name} {told}' for name, leaf in tensors if (told := _tensor_fault(leaf))), '')
        wrong = wrong or fault(value, FORM[field_name], field_name)
        if wrong:
            raise UserError(f'{path}: its {wrong}')


def _tensor_fault(value: Tensor) -> str:
    """Why a tensor cannot be a weight, a running statistic, a momentum or a count; empty if it can."""
    is_usual = value.dtype in DTYPES and value.layout is torch.strided and not value.is_nested
    if not is_usual or value.device.type != 'cpu':
        return f'is a tensor of a kind that is not read ({value.dtype}, {value.layout}, {value.device})'
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # of a shape that would fill the memory
        return f'is a tensor {tuple(value.shape)} of fewer numbers'
    extremes = value.aminmax() if value.numel() else ()  # NaN if there is one: ten times as fast as isfinite
    return '' if all(extreme.isfinite() for extreme in extremes) else 'is not finite'


def _is_best(name: Any, value: Any) -> bool:
    is_number = isinstance(value, Real) or isinstance(value, Tensor) and value.numel() == 1
    return isinstance(name, str) and name.startswith('best_') and is_number


def _without_prefix(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Names without `module.`, or `module.1.` of the reference's half-precision nets, if all begin so."""
    prefixes = ('module.1.', 'module.', '')
    prefix = next(prefix for prefix in prefixes if all(name.startswith(prefix) for name in state))
    return {name.removeprefix(prefix): value for name, value in state.items()}


def _sync_folder(folder: Path) -> None:
    """Make the rename itself survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
