"""The nets for torch.hub.

    torch.hub.load(REPO, 'resnext50_elastic', checkpoint='model_best.pth.tar')             a classifier
    torch.hub.load(REPO, 'segmenter_resnext50_elastic', checkpoint='my_exp_epoch50.pth')   a segmenter
    torch.hub.load(REPO, 'dla60x', num_classes=10)                                         with fresh weights

A net is called as in the registry of models/, a segmenter with `segmenter_` before its name. What is defined here
without a leading underscore is an entry point, so that modules are imported, and neither classes nor functions.
"""

import os
from collections import abc

from torch import nn

import models
from tools import pretrained
from utils import checkpoint as checkpoints
from utils import errors

dependencies = ['torch', 'torchvision', 'numpy', 'PIL']

_HELP = """{title}

    checkpoint:  path of a file that a script here wrote, or of a released one; default: fresh weights
    num_classes: of a net with fresh weights, default {classes}; a checkpoint has its own number

    The net takes images N x 3 x H x W, normalised by ImageNet's mean and standard deviation, and gives {outputs}.
    It comes in training mode: call its eval() before predicting.
    """


def _classifier(name: str) -> abc.Callable[..., nn.Module]:
    text = _HELP.format(title=models.classifiers[name].__doc__, classes=1000, outputs='logits N x num_classes')
    return _entry(name, models.classifiers, name, ('imagenet', 'coco'), text)


def _segmenter(name: str) -> abc.Callable[..., nn.Module]:
    outputs = 'logits or log-probabilities N x num_classes x H x W'
    text = _HELP.format(title=models.segmenters[name].__doc__, classes=21, outputs=outputs)
    return _entry(f'segmenter_{name}', models.segmenters, name, ('voc',), text)


def _entry(
    shown: str, registry: dict[str, abc.Callable[..., nn.Module]], name: str, tasks: tuple[str, ...], text: str
) -> abc.Callable[..., nn.Module]:
    """The function that torch.hub lists as `shown`: a net of the registry, or of a checkpoint of one of the tasks."""

    def entry(checkpoint: str | os.PathLike | None = None, num_classes: int | None = None, **kwargs) -> nn.Module:
        if checkpoint is not None:
            return _load(checkpoint, tasks, name, num_classes, kwargs)
        return registry[name](**kwargs if num_classes is None else {'num_classes': num_classes, **kwargs})

    entry.__name__ = entry.__qualname__ = shown
    entry.__doc__ = text
    return entry


def _load(
    path: str | os.PathLike, tasks: tuple[str, ...], name: str, num_classes: int | None, kwargs: dict
) -> nn.Module:
    found = checkpoints.read(path)
    task = found.task if found.task in tasks else tasks[0]  # files of 2019 name none, and all of `tasks` have one net
    model, identity = pretrained.load_net(found, task, name, **kwargs)
    if num_classes not in (None, len(identity.classes)):
        raise errors.UserError(f'{path}: a checkpoint of {len(identity.classes)} classes, not of {num_classes}')
    return model


resnext50 = _classifier('resnext50')
resnext50_elastic = _classifier('resnext50_elastic')
resnext101 = _classifier('resnext101')
resnext101_elastic = _classifier('resnext101_elastic')
se_resnext50 = _classifier('se_resnext50')
se_resnext50_elastic = _classifier('se_resnext50_elastic')
dla60x = _classifier('dla60x')
dla60x_elastic = _classifier('dla60x_elastic')
dla102x = _classifier('dla102x')
dla102x_elastic = _classifier('dla102x_elastic')
densenet201 = _classifier('densenet201')
densenet201_elastic = _classifier('densenet201_elastic')

segmenter_resnext50 = _segmenter('resnext50')
segmenter_resnext50_elastic = _segmenter('resnext50_elastic')
segmenter_resnext101 = _segmenter('resnext101')
segmenter_resnext101_elastic = _segmenter('resnext101_elastic')
segmenter_dla60x = _segmenter('dla60x')
segmenter_dla60x_elastic = _segmenter('dla60x_elastic')
