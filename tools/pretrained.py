"""The net that a checkpoint is of, with the checkpoint's weights: for the tools and torch.hub."""

from argparse import ArgumentParser
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch
from torch import nn

import models
from data.class_names import DATA_SETS, default_names
from utils import checkpoint
from utils.checkpoint import Checkpoint, CheckpointMeta, load_for_evaluation, resume, submodule_state_dict
from utils.cli import check_image_size, classifier
from utils.errors import UserError

Builder = Callable[..., nn.Module]

# The tasks that checkpoints name, and their nets.
TASKS: dict[str, dict[str, Builder]] = {
    'imagenet': models.classifiers,
    'coco': models.classifiers,
    'voc': models.segmenters,
}
IMAGE_SIZES = {'imagenet': 224, 'coco': 224, 'voc': 513}  # of the paper's tests


def add_arch_argument(parser: ArgumentParser, **kwargs) -> None:
    """The net of a classifier's checkpoint, for open_classifier."""
    options = {'type': classifier, 'metavar': 'ARCH', 'help': 'where the checkpoint does not say'}
    parser.add_argument('-a', '--arch', **options | kwargs)


def load_net(
    found: Checkpoint, task: str | None = None, arch: str | None = None, expected: list[str] | None = None, **kwargs
) -> tuple[nn.Module, CheckpointMeta]:
    """The net of a checkpoint with its weights, and what it is for; `kwargs` go to the net's builder.

    `task` and `arch` are needed only where neither the file nor its tensors tell; `expected` are the classes that the
    checkpoint must have. UserError that says which is missing, or in what the file is of another net.
    """
    task, arch = identify(found, task, arch)
    build = TASKS[task][arch]
    classes = expected or found.classes or default_names(task, count_outputs(found, build))
    model, identity = build(num_classes=len(classes), **kwargs), CheckpointMeta(task, arch, classes)
    if expected:
        load_for_evaluation(model, found, identity)
    else:
        resume(model, found)
    return model, identity


def open_classifier(
    path: Path, arch: str | None, side: int, task: str | None = None, expected: list[str] | None = None
) -> tuple[nn.Module, CheckpointMeta]:
    """The classifier of a file with its weights, in evaluation mode, and what it is for; the rest is as load_net's.

    A file that does not name its task counts as ImageNet's, whose nets are COCO's too. UserError also if the net does
    not take pictures of `side` pixels.
    """
    found = checkpoint.read(path)
    own = 'coco' if found.task == 'coco' else 'imagenet'
    model, identity = load_net(found, task or own, arch, expected)
    check_image_size(identity.arch, model, side)
    return model.eval(), identity


def identify(found: Checkpoint, task: str | None, arch: str | None) -> tuple[str, str]:
    """Task and net of a checkpoint: as the file says, else as given, else as its tensors tell."""
    for said, given in (found.task, task), (found.arch, arch):
        if said and given and said != given:
            raise UserError(f'{found.path}: a checkpoint of {said}, not of {given}')
    task, arch = found.task or task, found.arch or arch
    possible = [
        (of, name)
        for of, registry in TASKS.items()
        for name in (registry if arch is None else [arch])
        if task in (None, of) and name in registry
    ]
    if not possible:
        known = f'tasks are {", ".join(TASKS)}; nets {", ".join(TASKS.get(task, models.classifiers))}'
        raise UserError(f'{found.path}: a checkpoint of {arch or "a net"} for {task or "any task"}; {known}')
    return possible[0] if len(possible) == 1 else _told_by_tensors(found, possible)


def count_outputs(found: Checkpoint, build: Builder) -> int:
    """Of how many classes the checkpoint's head is; UserError where it has no such head."""
    net = _blueprint(build)
    *_, last = submodule_state_dict(net, net.head_names)  # the bias of the last layer
    if last not in found.state_dict:
        raise UserError(f'{found.path}: a checkpoint of another net, it holds no {last}')
    return found.state_dict[last].shape[:1].numel()


def _told_by_tensors(found: Checkpoint, possible: list[tuple[str, str]]) -> tuple[str, str]:
    """The one task and net that the names of the tensors fit.

    ImageNet's and COCO's nets differ in nothing but their number of outputs: 1000 or 80 decides.
    """
    fitting, of_data_sets = [], []
    for task, arch in possible:
        net = _blueprint(TASKS[task][arch])
        parameters = {name for name, _ in net.named_parameters()}
        if parameters <= found.state_dict.keys() <= net.state_dict().keys():  # old files lack num_batches_tracked
            fitting.append((task, arch))
            if count_outputs(found, TASKS[task][arch]) == len(DATA_SETS[task]):
                of_data_sets.append((task, arch))
    for pairs in fitting, of_data_sets:
        if len(pairs) == 1:
            return pairs[0]
    tasks, archs = map(set, zip(*(fitting or possible), strict=True))
    flags = ['--task'] * (len(tasks) > 1) + ['--arch'] * (len(archs) > 1)
    raise UserError(f'{found.path} does not say what it is of, nor do its tensors tell: give {" and ".join(flags)}')


@cache
def _blueprint(build: Builder) -> nn.Module:
    """The net without memory for its weights."""
    with torch.device('meta'):
        return build()
