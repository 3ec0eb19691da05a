"""Classifiers of torchvision and timm by name: torchvision/NAME, timm/NAME, and each with _elastic behind it."""

import importlib
import textwrap
from collections.abc import Callable, Mapping
from functools import cache, partial

import torch
from torch import Tensor, nn

from models.convert import elasticize


@cache
def library_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of LIBRARY/NAME or LIBRARY/NAME_elastic; ValueError if there is no such library or net."""
    library, _, net = name.partition('/')
    plain = net.removesuffix('_elastic')
    if library not in ('torchvision', 'timm'):
        raise ValueError(f'there is no classifier {name}')
    try:
        nets = importlib.import_module('timm' if library == 'timm' else 'torchvision.models')
    except ImportError as error:
        raise ValueError(f'{name} is of timm, which is not installed: pip install timm') from error
    known = nets.list_models() if library == 'timm' else nets.list_models(module=nets)
    if plain not in known:
        raise ValueError(f'{library} has no net {plain}')
    make = partial(nets.create_model if library == 'timm' else nets.get_model, plain)
    return partial(build, make, plain != net)


def build(
    make: Callable[..., nn.Module], elastic: bool, num_classes: int = 1000, weights: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The net with fresh weights, or those of the library, which are loaded before the net is cut.

    As in the nets of models/, `head_names` has the layers that give the scores. `fresh` has those of them whose weights
    are of another number of classes, and so are left out. ValueError if other weights do not fit.
    """
    with torch.device('cpu'):  # torchvision's RegNets work out their widths by tensors, which meta has not
        net = make(num_classes=num_classes)
    if getattr(net, 'aux_logits', False):
        raise ValueError('it gives auxiliary scores in training, which the scripts do not know')
    net = net.to(torch.get_default_device())
    net.head_names = heads_of(net)
    if weights is not None:
        own = net.state_dict()
        heads = {name: own[name] for name in own if name.rpartition('.')[0] in net.head_names}
        fits = all(name in weights and weights[name].shape == value.shape for name, value in heads.items())
        net.fresh = () if fits else net.head_names
        try:
            net.load_state_dict({**weights, **({} if fits else heads)})
        except RuntimeError as error:
            raise ValueError(textwrap.shorten(f'the weights do not fit: {error}', 400)) from None
    return elasticize(net) if elastic else net


def heads_of(net: nn.Module) -> tuple[str, ...]:
    """The names of the layers that give the scores: timm tells them, torchvision's is the last."""
    layers = [layer for layer in net.modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    found = net.get_classifier() if hasattr(net, 'get_classifier') else layers[-1]
    heads = found if isinstance(found, tuple | list) else [found]
    return tuple(name for name, module in net.named_modules() if any(module is head for head in heads))
