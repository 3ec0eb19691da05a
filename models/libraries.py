"""Classifiers of torchvision and timm by name: torchvision/NAME, timm/NAME, and each with _elastic behind it."""

import importlib
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from models.convert import elasticize

SUFFIX = '_elastic'


def library_builder(name: str) -> Callable[..., nn.Module]:
    """The builder of LIBRARY/NAME or LIBRARY/NAME_elastic; ValueError if there is no such library or net."""
    library, _, net = name.partition('/')
    plain = net.removesuffix(SUFFIX)
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
    """The net, with the library's weights if they are given, before it is cut; its head if it has as many classes.

    As in the nets of models/, `head_names` has the layer that gives the scores. ValueError if another weight does not
    fit.
    """
    with torch.device('cpu'):  # torchvision's RegNets work out their widths by tensors, which meta has not
        net = make(num_classes=num_classes)
    net = net.to(torch.get_default_device())
    layers = [name for name, layer in net.named_modules() if isinstance(layer, nn.Linear | nn.Conv2d)]
    net.head_names = (layers[-1],)
    if weights is not None:
        own = net.state_dict()
        head = {name: own[name] for name in own if name.rpartition('.')[0] in net.head_names}
        fits = all(name in weights and weights[name].shape == value.shape for name, value in head.items())
        try:
            net.load_state_dict({**weights, **({} if fits else head)})
        except RuntimeError as error:
            raise ValueError(f'the weights do not fit: {error}') from None
    return elasticize(net) if elastic else net
