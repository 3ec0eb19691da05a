"""The classifier that a checkpoint holds, for the tools that look at one."""

from pathlib import Path

import torch
from torch import nn

import models
from utils import checkpoint
from utils.checkpoint import Checkpoint
from utils.errors import UserError
from utils.restore import Identity, load_for_evaluation


def open_classifier(
    path: Path, arch: str | None = None, task: str | None = None, classes: list[str] | None = None
) -> tuple[nn.Module, Identity]:
    """The net of a checkpoint with its weights, in evaluation mode, and what it is for.

    `arch` is for files that do not name theirs; `task` and `classes` are those wanted, if not the checkpoint's own
    (numbers, where it names none). Raises UserError if the checkpoint is of anything else.
    """
    found = checkpoint.read(path)
    arch = arch or found.arch
    if arch is None:
        raise UserError(f'{path} does not say which net it is of (--arch)')
    if arch not in models.classifiers or found.task == 'voc':
        raise UserError(f'{path}: of {arch} for {found.task or "an unknown task"}, which is no classifier known here')
    classes = classes or found.classes or [str(number) for number in range(_head_size(found, arch))]
    identity = Identity(task or found.task or 'imagenet', arch, classes)
    model = models.build_classifier(arch, len(classes))
    load_for_evaluation(model, found, identity)
    return model.eval(), identity


def _head_size(found: Checkpoint, arch: str) -> int:
    """How many classes the saved head tells apart."""
    with torch.device('meta'):
        (head,) = models.build_classifier(arch).heads
    if f'{head}.weight' not in found.state_dict:
        raise UserError(f'{found.path}: holds no {head}, so it is of no {arch} that classifies')
    return len(found.state_dict[f'{head}.weight'])
