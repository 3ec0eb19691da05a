"""From a checkpoint into a net: resume, where everything fits, and transfer, where exactly the head may differ."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from models.norm import batch_norms, statistics
from utils.checkpoint import Checkpoint
from utils.errors import UserError, named
from utils.form import Kind, fault

# SGD's state as PyTorch saves it: what is kept of each parameter by its key, and the keys of each group.
MOMENTUM = Kind(
    'the state of a parameter of SGD',
    lambda value: isinstance(value, dict) and isinstance(value.get('momentum_buffer'), Tensor | None),
)
OPTIMIZER = {
    'param_groups': [{'params': [Kind('the key of a parameter', lambda key: isinstance(key, int))]}],
    'state': {int: MOMENTUM},
}


@dataclass(frozen=True)
class Identity:
    """What a net is for; checkpoints carry it."""

    task: str  # imagenet, coco or voc
    arch: str
    classes: list[str]


def head_difference(checkpoint: Checkpoint, model: nn.Module, wanted: Identity) -> str:
    """In what the checkpoint's head differs from the one wanted, in words; empty if it can be resumed as it is.

    Files of 2019 name neither task nor classes: there the shape of the head decides.
    Raises UserError where the file is of another architecture.
    """
    if checkpoint.arch not in (None, wanted.arch):
        raise UserError(f'{checkpoint.path}: a checkpoint of {checkpoint.arch}, not of --arch {wanted.arch}')
    if checkpoint.task not in (None, wanted.task):
        return f'its task is {checkpoint.task}, not {wanted.task}'
    if _is_of_classifier(checkpoint, model):
        return f'it holds no {" or ".join(model.heads)}, so it is of a classifier, or of another net'
    for name, value in module_state(model, model.heads).items():
        saved = checkpoint.state_dict.get(name)
        if saved is not None and saved.dim() and len(saved) != len(value):
            return f'its head has {len(saved)} classes, not {len(value)}'
    if checkpoint.classes is not None and checkpoint.classes != wanted.classes:
        if len(checkpoint.classes) != len(wanted.classes):
            return f'it names {len(checkpoint.classes)} classes, not {len(wanted.classes)}'
        old, new = next(pair for pair in zip(checkpoint.classes, wanted.classes, strict=True) if pair[0] != pair[1])
        return f'its classes differ: {old} where the data has {new}'
    return ''


def module_state(model: nn.Module, modules: Iterable[str]) -> dict[str, Tensor]:
    """The state of the model's modules of these names, such as its heads, under its full names."""
    return {
        f'{module}.{name}': value
        for module in modules
        for name, value in model.get_submodule(module).state_dict().items()
    }


def _is_of_classifier(checkpoint: Checkpoint, model: nn.Module) -> bool:
    """Whether the model is a segmenter and the checkpoint holds nothing of its heads."""
    heads = module_state(model, model.heads)
    return hasattr(model, 'from_classifier') and not any(name in checkpoint.state_dict for name in heads)


def resume(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Load every tensor of the checkpoint; UserError unless every name and shape fits."""
    _load(model, _with_counters(model, checkpoint.state_dict), checkpoint)


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
        told = '; '.join(f'{kind}: {named(names)}' for kind, names in faults.items() if names)
        raise UserError(f'{path} does not fit the net: {told}')


def load_for_evaluation(model: nn.Module, checkpoint: Checkpoint, wanted: Identity) -> None:
    """Load a checkpoint of this very task and head; UserError for any other."""
    difference = head_difference(checkpoint, model, wanted)
    if difference:
        raise UserError(f'{checkpoint.path} cannot be evaluated here: {difference}')
    resume(model, checkpoint)


def transfer(model: nn.Module, checkpoint: Checkpoint) -> list[str]:
    """Load all but the heads; the modules that so stay as initialised. UserError if anything else differs.

    A segmenter also takes a classifier's state. What it only carries along and never trains is taken where it fits.
    """
    source = checkpoint.state_dict
    if _is_of_classifier(checkpoint, model):
        source = model.from_classifier(source)
    fresh = [*model.heads, *(module for module in getattr(model, 'untrained', ()) if not _fits(model, module, source))]
    own = module_state(model, fresh)
    _load(model, _with_counters(model, {k: v for k, v in source.items() if k not in own}) | own, checkpoint)
    return fresh


def _fits(model: nn.Module, module: str, source: Mapping[str, Tensor]) -> bool:
    own = module_state(model, [module])
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
    told = fault(saved, OPTIMIZER, 'optimizer')
    if told:
        raise UserError(f'{checkpoint.path}: its {told}')
    keys = [key for group in saved['param_groups'] for key in group['params']]
    momenta = [saved['state'].get(key, {}).get('momentum_buffer') for key in keys]
    parameters = [parameter for group in optimizer.param_groups for parameter in group['params']]
    norms = {parameter for norm in batch_norms(model) for parameter in norm.parameters()}
    others = [parameter for parameter in parameters if parameter not in norms]
    if len(momenta) not in (len(parameters), len(others)):
        raise UserError(f'{checkpoint.path}: optimizer of {len(momenta)} parameters, the net has {len(parameters)}')
    aligned = parameters if len(momenta) == len(parameters) else others
    for position, (momentum, parameter) in enumerate(zip(momenta, aligned, strict=True)):
        _load_momentum(optimizer, parameter, momentum, f'{checkpoint.path}: momentum {position}')


def _load_momentum(optimizer: torch.optim.Optimizer, parameter: Tensor, momentum: Tensor | None, where: str) -> None:
    if momentum is None:
        return
    if momentum.shape != parameter.shape:
        raise UserError(f'{where} is {tuple(momentum.shape)}, its parameter {tuple(parameter.shape)}')
    optimizer.state[parameter]['momentum_buffer'] = torch.empty_like(parameter).copy_(momentum)


def _load(model: nn.Module, state: Mapping[str, Tensor], checkpoint: Checkpoint) -> None:
    check_fit(model.state_dict(), state, checkpoint.path)
    model.load_state_dict(state)


def _with_counters(model: nn.Module, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Add batch norm's num_batches_tracked, which PyTorch 0.4.0 did not save, where the file has none at all."""
    counters = {name: value for name, value in statistics(model).items() if name.endswith('num_batches_tracked')}
    return dict(state) if any(name in state for name in counters) else {**state, **counters}
