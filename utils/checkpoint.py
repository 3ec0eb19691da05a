"""Checkpoint files: the one place that reads them and the one that writes them.

A file is a dict with the reference's keys (epoch, arch, state_dict, optimizer, best_err1) and ours (task, classes,
run, seed, scaler, position, smooth_loss, processes). Files of 2019 hold only some of them; bare state dicts hold none.
"""

import os
import pickle
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.norm import batch_norms, bn_buffers
from utils.errors import UserError, named, reading
from utils.files import written_whole

# NumPy scalars (a best error, say) are data; every other class in a pickle is refused.
# Files written with NumPy 1 name its old module.
NUMPY_SCALARS = [
    np.dtype,
    *{type(np.dtype(code)) for code in '?bBhHiIlLqQefd'},
    (np._core.multiarray.scalar, 'numpy.core.multiarray.scalar'),
    (np._core.multiarray.scalar, 'numpy._core.multiarray.scalar'),
]
# What a file may hold beside its state dict, in words and as a test; None counts as not there. The content of
# an optimizer, a scaler, a position or processes is checked where it is used.
NAME = 'a name', lambda value: isinstance(value, str)
COUNT = 'a whole number from 0 on', lambda value: isinstance(value, Integral) and 0 <= value < 2**63
DICT = 'a dict', lambda value: isinstance(value, Mapping)
KINDS = {
    'epoch': COUNT,
    'arch': NAME,
    'optimizer': DICT,
    'task': NAME,
    'classes': ('a list of names', lambda value: isinstance(value, list) and all(isinstance(x, str) for x in value)),
    'seed': COUNT,
    'scaler': DICT,
    'position': DICT,
    'run': NAME,
    'smooth_loss': ('a finite number', lambda value: isinstance(value, Real) and abs(value) < 1e300),
    'processes': ('a list', lambda value: isinstance(value, list)),
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
    run: str | None = None  # a word of its own, in all files that a run writes
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
    known = {name: content[name] for name in KINDS if content.get(name) is not None}
    _check(path, content['state_dict'], known)
    if 'epoch' in known:
        known['epoch'] = int(known['epoch'])
    with reading(f'{path}: its best error is no number'):
        best = {name: float(value) for name, value in content.items() if _is_best(name, value)}
    return Checkpoint(path, _without_prefix(content['state_dict']), **known, best=best)


def is_of_another_run(path: Path, found: Checkpoint) -> bool:
    """Whether a file, whose tensors are not read, names another run or net than `found`; a damaged one names none."""
    try:
        with torch.serialization.safe_globals(NUMPY_SCALARS):
            content = torch.load(path, map_location='cpu', weights_only=True, mmap=zipfile.is_zipfile(path))
        run, arch = content.get('run'), content.get('arch')
    except OSError:  # it may be whole
        raise
    except Exception:  # as in `reading`, whatever damaged bytes make torch raise
        return False
    return run != found.run or None not in (arch, found.arch) and arch != found.arch


def write(content: Mapping[str, Any], *paths: Path) -> None:
    """Write `content` to each path so that a process killed at any instant leaves the old file or the new one, whole.

    Once all are written they are put in place, in this order. Raises UserError when one cannot be written (a full disk,
    a read-only folder); the old files stay.
    """
    with written_whole(*paths) as temporary:
        for path, file in zip(paths, temporary, strict=True):
            try:
                with open(file, 'wb') as opened:
                    torch.save(dict(content), opened)
            except (OSError, RuntimeError) as error:  # torch's zip writer turns a failed write into a RuntimeError
                full = ' (is the disk full?)' if isinstance(error, RuntimeError) else ''
                raise UserError(f'cannot write {path}{full}: {error}') from error


def state_dict(model: torch.nn.Module) -> dict[str, Tensor]:
    """The state dict of a bare model under the names the reference saved, from within DataParallel."""
    return {f'module.{name}': value for name, value in model.state_dict().items()}


def _load(path: Path) -> Any:
    if not path.is_file():
        raise UserError(f'{path} is a folder, no checkpoint' if path.is_dir() else f'no checkpoint at {path}')
    damaged = f'{path}: not a PyTorch checkpoint, or a damaged one'
    with reading(damaged), torch.serialization.safe_globals(NUMPY_SCALARS):
        if zipfile.is_zipfile(path) and (part := zipfile.ZipFile(path).testzip()):  # which torch.load does not look at
            raise UserError(f'{damaged}: the checksum of {part} does not fit')
        try:
            return torch.load(path, map_location='cpu', weights_only=True)
        except pickle.UnpicklingError as error:
            refused = re.search(r'GLOBAL ([\w.]+)', str(error))
            what = 'which is neither a tensor nor a plain value'
            message = f'{path}: refused, its pickle names {refused[1]}, {what}' if refused else damaged
            raise UserError(message) from error


def _check(path: Path, state: Any, known: Mapping[str, Any]) -> None:
    """UserError that names the first value which is not of its kind, or the first tensor that no net can hold."""
    is_dict = isinstance(state, Mapping)
    if not is_dict or not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise UserError(f'{path}: holds no state_dict of named tensors')
    for name, leaf in _leaves({'state_dict': state, **known}):
        if isinstance(leaf, Tensor) and (message := _tensor_fault(leaf)):
            raise UserError(f'{path}: its {name} {message}')
    for name, value in known.items():
        words, fits = KINDS[name]
        if not fits(value):
            raise UserError(f'{path}: its {name} is not {words}')


def _leaves(value: Any) -> Iterator[tuple[str, Any]]:
    """All values in nested dicts and lists, once each, with their dotted names."""
    waiting, seen = [('', value)], set()
    while waiting:
        name, value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple):
            yield name, value
        elif id(value) not in seen:  # a pickle's list may hold itself
            seen.add(id(value))
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f'{name}.{key}'.removeprefix('.'), item) for key, item in pairs]


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


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of either format by name; nothing in it is executed. Raises UserError if it is damaged."""
    if path.suffix != '.safetensors':
        return read(path).state_dict
    try:
        from safetensors.torch import load_file
    except ImportError:
        raise UserError(f'{path}: to read it needs pip install safetensors') from None
    with reading(f'cannot read {path}'):
        state = load_file(path)
    _check(path, state, {})
    return state


@dataclass(frozen=True)
class CheckpointMeta:
    """What a net is for; checkpoints carry it."""

    task: str  # such as imagenet, coco or voc
    arch: str
    classes: list[str]


def head_mismatch(checkpoint: Checkpoint, model: nn.Module, expected: CheckpointMeta) -> str:
    """In what the checkpoint's head differs from the one wanted, in words; empty if it can be resumed as it is.

    Files of 2019 name neither task nor classes: there the shape of the head decides.
    Raises UserError where the file is of another architecture.
    """
    if checkpoint.arch not in (None, expected.arch):
        raise UserError(f'{checkpoint.path}: a checkpoint of {checkpoint.arch}, not of --arch {expected.arch}')
    if checkpoint.task not in (None, expected.task):
        return f'its task is {checkpoint.task}, not {expected.task}'
    if _is_of_classifier(checkpoint, model):
        return f'it holds no {" or ".join(model.head_names)}, so it is of a classifier, or of another net'
    for name, value in submodule_state_dict(model, model.head_names).items():
        saved = checkpoint.state_dict.get(name)
        if saved is not None and saved.dim() and len(saved) != len(value):
            return f'its head has {len(saved)} classes, not {len(value)}'
    if checkpoint.classes is not None and checkpoint.classes != expected.classes:
        if len(checkpoint.classes) != len(expected.classes):
            return f'it names {len(checkpoint.classes)} classes, not {len(expected.classes)}'
        old, new = next(pair for pair in zip(checkpoint.classes, expected.classes, strict=True) if pair[0] != pair[1])
        return f'its classes differ: {old} where the data has {new}'
    return ''


def submodule_state_dict(model: nn.Module, modules: Iterable[str]) -> dict[str, Tensor]:
    """The state of the model's modules of these names, such as its heads, under its full names."""
    return {
        f'{module}.{name}': value
        for module in modules
        for name, value in model.get_submodule(module).state_dict().items()
    }


def _is_of_classifier(checkpoint: Checkpoint, model: nn.Module) -> bool:
    """Whether the model is a segmenter and the checkpoint holds nothing of its heads."""
    heads = submodule_state_dict(model, model.head_names)
    return hasattr(model, 'from_classifier') and not any(name in checkpoint.state_dict for name in heads)


def resume(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load every tensor of the checkpoint; UserError unless every name and shape fits."""
    _load_state(model, _with_counters(model, checkpoint.state_dict), checkpoint)


def check_fit(own: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """UserError that lists what is missing from `path`'s state, unexpected or of another shape, unless all fits."""
    faults = {
        'missing': [name for name in own if name not in state],
        'unexpected': [name for name in state if name not in own],
        'of another shape': [
            f'{name} {tuple(state[name].shape)} instead of {tuple(own[name].shape)}'
            for name in own
            if name in state and state[name].shape != own[name].shape
        ],
    }
    if any(faults.values()):
        message = '; '.join(f'{kind}: {named(names)}' for kind, names in faults.items() if names)
        raise UserError(f'{path} does not fit the net: {message}')


def load_for_evaluation(model: nn.Module, checkpoint: Checkpoint, expected: CheckpointMeta) -> None:
    """Load a checkpoint of this very task and head; UserError for any other."""
    difference = head_mismatch(checkpoint, model, expected)
    if difference:
        raise UserError(f'{checkpoint.path} cannot be evaluated here: {difference}')
    resume(model, checkpoint)


def transfer(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load all but the heads; the modules that so stay as initialised. UserError if anything else differs.

    A segmenter also takes a classifier's state. The modules that it names as `untrained` are loaded where they fit.
    """
    source = checkpoint.state_dict
    if _is_of_classifier(checkpoint, model):
        source = model.from_classifier(source)
    idle = [module for module in getattr(model, 'untrained', ()) if not _fits(model, module, source)]
    fresh = [*model.head_names, *idle]
    own = submodule_state_dict(model, fresh)
    _load_state(model, _with_counters(model, {k: v for k, v in source.items() if k not in own}) | own, checkpoint)
    return fresh


def _fits(model: nn.Module, module: str, source: Mapping[str, Tensor]) -> bool:
    own = submodule_state_dict(model, [module])
    return all(name in source and source[name].shape == value.shape for name, value in own.items())


def load_optimizer(model: nn.Module, optimizer: torch.optim.Optimizer, checkpoint: Checkpoint) -> None:
    """Load the momentum by position over all parameters in order, also those that never get a gradient.

    That fits the files of 2019, keyed by object ids, as well as ours, keyed by 0..n. With --freeze_bn the reference
    left the model's batch norms out of the optimizer: a file of so many fewer aligns with the other parameters.
    Learning rate, momentum and weight decay stay those of `optimizer`. Raises UserError where form, number or shapes
    differ.
    """
    saved = checkpoint.optimizer
    if saved is None:
        return
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    norms = {parameter for norm in batch_norms(model) for parameter in norm.parameters()}
    others = [parameter for parameter in parameters if parameter not in norms]
    with reading(f'{checkpoint.path}: its optimizer has another form'):
        keys = [key for group in saved['param_groups'] for key in group['params']]
        momenta = [saved['state'].get(key, {}).get('momentum_buffer') for key in keys]
        if len(momenta) not in (len(parameters), len(others)):
            raise UserError(f'{checkpoint.path}: optimizer of {len(momenta)} parameters, the net has {len(parameters)}')
        aligned = parameters if len(momenta) == len(parameters) else others
        for position, (momentum, parameter) in enumerate(zip(momenta, aligned, strict=True)):
            if momentum is None:
                continue
            if momentum.shape != parameter.shape:
                shapes = f'{tuple(momentum.shape)}, its parameter {tuple(parameter.shape)}'
                raise UserError(f'{checkpoint.path}: momentum {position} is {shapes}')
            optimizer.state[parameter]['momentum_buffer'] = torch.empty_like(parameter).copy_(momentum)


def _load_state(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    check_fit(model.state_dict(), state, checkpoint.path)
    model.load_state_dict(state)


def _with_counters(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add batch norm's num_batches_tracked, which PyTorch 0.4.0 did not save, where the file has none at all."""
    counters = {name: value for name, value in bn_buffers(model).items() if name.endswith('num_batches_tracked')}
    return dict(state) if any(name in state for name in counters) else {**state, **counters}
