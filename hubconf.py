"""The nets for torch.hub.

    torch.hub.load(REPO, 'resnext50_elastic', checkpoint='model_best.pth.tar')             a classifier
    torch.hub.load(REPO, 'segmenter_resnext50_elastic', checkpoint='my_exp_epoch50.pth')   a segmenter
    torch.hub.load(REPO, 'dla60x', num_classes=10)                                         with fresh weights
    torch.hub.load(REPO, 'elasticize', net=torchvision.models.resnext50_32x4d())           another library's net

A net is called as in the registry of models/, a segmenter with `segmenter_` before its name. What is defined here
without a leading underscore is an entry point, so that modules are imported, and neither classes nor functions.
"""

import os
from collections import abc

from torch import nn

import models
from models.convert import elasticize  # noqa: F401  an entry point
from tools import pretrained
from utils import checkpoint as checkpoints
from utils import errors

dependencies = ['torch', 'torchvision', 'numpy', 'PIL']

_HELP = """{title}

    checkpoint:  path of a file that a script here wrote, or of a released one; default: fresh weights
    num_classes: of a net with fresh weights, default {classes}; a checkpoint has its own number

    The net takes images N x 3 x H x W, normalized by ImageNet's mean and standard deviation, and gives {outputs}.
    It comes in training mode: call its eval() before predicting.
    """


def _entry(prefix: str, name: str, tasks: tuple[str, ...], classes: int, outputs: str) -> abc.Callable[..., nn.Module]:
    """The function that torch.hub lists as PREFIXNAME: a net of the tasks' registry, or of a checkpoint of one."""
    registry = pretrained.TASKS[tasks[0]]

    def entry(checkpoint: str | os.PathLike | None = None, num_classes: int | None = None, **kwargs) -> nn.Module:
        if checkpoint is None:
            return registry[name](**kwargs if num_classes is None else {'num_classes': num_classes, **kwargs})
        found = checkpoints.read(checkpoint)
        task = found.task if found.task in tasks else tasks[0]  # files of 2019 name none, and all of `tasks` fit
        model, identity = pretrained.load_net(found, task, name, **kwargs)
        number = len(identity.classes)
        if num_classes not in (None, number):
            raise errors.UserError(f'{checkpoint}: a checkpoint of {number} classes, not of {num_classes}')
        return model

    entry.__name__ = entry.__qualname__ = prefix + name
    entry.__doc__ = _HELP.format(title=registry[name].__doc__, classes=classes, outputs=outputs)
    return entry


# torch.hub lists and calls the functions that it finds among the names of this module, so each has to be one of them.
for _name in models.classifiers:
    globals()[_name] = _entry('', _name, ('imagenet', 'coco'), 1000, 'logits N x num_classes')
for _name in models.segmenters:
    _outputs = 'logits or log-probabilities N x num_classes x H x W'
    globals()[f'segmenter_{_name}'] = _entry('segmenter_', _name, ('voc',), 21, _outputs)
