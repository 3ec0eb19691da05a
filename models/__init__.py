"""The nets of the paper by name: `classifiers` and `segmenters` are the one list of them for scripts, tests, tables."""

from collections.abc import Callable

from torch import nn

from models import deeplab, dla_up
from models.densenet import densenet201, densenet201_elastic
from models.dla import dla60x, dla60x_elastic, dla102x, dla102x_elastic
from models.libraries import library_builder
from models.resnext import (
    resnext50,
    resnext50_elastic,
    resnext101,
    resnext101_elastic,
    se_resnext50,
    se_resnext50_elastic,
)


class Classifiers(dict[str, Callable[..., nn.Module]]):
    """Builders by name; LIBRARY/NAME is found, too, but not listed. ValueError for a name that is none."""

    def __missing__(self, name: str) -> Callable[..., nn.Module]:
        if '/' in name:
            return library_builder(name)
        raise ValueError(f'unknown classifier {name!r}; known are {", ".join(self)}')

    def __contains__(self, name: str) -> bool:
        try:
            return bool(self[name])
        except ValueError:
            return False


BUILDERS = (
    resnext50,
    resnext50_elastic,
    resnext101,
    resnext101_elastic,
    se_resnext50,
    se_resnext50_elastic,
    dla60x,
    dla60x_elastic,
    dla102x,
    dla102x_elastic,
    densenet201,
    densenet201_elastic,
)
classifiers = Classifiers({build.__name__: build for build in BUILDERS})

segmenters: dict[str, Callable[..., nn.Module]] = {
    'resnext50': deeplab.resnext50,
    'resnext50_elastic': deeplab.resnext50_elastic,
    'resnext101': deeplab.resnext101,
    'resnext101_elastic': deeplab.resnext101_elastic,
    'dla60x': dla_up.dla60x,
    'dla60x_elastic': dla_up.dla60x_elastic,
}


def build_classifier(name: str, num_classes: int = 1000, **kwargs) -> nn.Module:
    """The classifier of that name with fresh weights; `kwargs` go to its builder. Unknown names: ValueError."""
    return classifiers[name](num_classes=num_classes, **kwargs)


def build_segmenter(name: str, num_classes: int = 21, **kwargs) -> nn.Module:
    """The segmenter of that name with fresh weights; `kwargs` go to its builder. Unknown names: ValueError."""
    if name not in segmenters:
        raise ValueError(f'unknown segmenter {name!r}; known are {", ".join(segmenters)}')
    return segmenters[name](num_classes=num_classes, **kwargs)
