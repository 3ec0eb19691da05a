"""The nets of the paper by name: `classifiers` is the one list of them; scripts, tests and tables read it."""

from collections.abc import Callable

from torch import nn

from models.densenet import densenet201, densenet201_elastic
from models.dla import dla60x, dla60x_elastic, dla102x, dla102x_elastic
from models.resnext import (
    resnext50,
    resnext50_elastic,
    resnext101,
    resnext101_elastic,
    se_resnext50,
    se_resnext50_elastic,
)

classifiers: dict[str, Callable[..., nn.Module]] = {
    'resnext50': resnext50,
    'resnext50_elastic': resnext50_elastic,
    'resnext101': resnext101,
    'resnext101_elastic': resnext101_elastic,
    'se_resnext50': se_resnext50,
    'se_resnext50_elastic': se_resnext50_elastic,
    'dla60x': dla60x,
    'dla60x_elastic': dla60x_elastic,
    'dla102x': dla102x,
    'dla102x_elastic': dla102x_elastic,
    'densenet201': densenet201,
    'densenet201_elastic': densenet201_elastic,
}


def build_classifier(name: str, num_classes: int = 1000, **kwargs) -> nn.Module:
    """The classifier of that name with fresh weights; `kwargs` go to its builder."""
    if name not in classifiers:
        raise ValueError(f'unknown classifier {name!r}; known are {", ".join(classifiers)}')
    return classifiers[name](num_classes=num_classes, **kwargs)
