"""The nets that checks and tests build: all of full size by the names of tests/golden, and a shallow one a family."""

from collections.abc import Callable
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from models.deeplab import DeepLab
from models.densenet import DenseNet
from models.dla import DLA
from models.dla_up import DLASegmenter
from models.resnext import ResNeXt
from tools.check_gpu.golden import NETS, load_weights
from utils.device import Compute
from utils.trainer import TrainingStep


def dla_up(num_classes: int = 21, checkpoint_activations: bool = False) -> DLASegmenter:
    base = DLA((1, 1, 1, 1, 1, 1), elastic=True)
    return DLASegmenter(base, num_classes, checkpoint_activations=checkpoint_activations)


# Few layers, and all that is in the nets: blocks at two scales and halves at one, identities and projections as
# shortcuts, trees in trees with the children they are handed.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    'resnext': partial(ResNeXt, (2, 1, 1, 1), se=True, elastic=True),
    'dla': partial(DLA, (1, 1, 1, 2, 1, 1), residual_root=True),
    'dla_elastic': partial(DLA, (1, 1, 1, 1, 1, 1), elastic=True, cardinality=50),
    'densenet': partial(DenseNet, (1, 1, 1, 1)),
    'densenet_elastic': partial(DenseNet, (2, 1, 1, 1), elastic=True),
    'deeplab': partial(DeepLab, (2, 1, 1), elastic=True),
    'dla_up': dla_up,
}


def on_meta(name: str, *args, **kwargs) -> nn.Module:
    """The net without memory for its weights."""
    with torch.device('meta'):
        return (NETS | FAMILIES)[name](*args, **kwargs)


def filled(name: str, *args, dtype: torch.dtype = torch.float32, **kwargs) -> nn.Module:
    """The net in evaluation with the weights of the recordings: every branch counts, also those that begin at zero."""
    return load_weights(on_meta(name, *args, **kwargs).to(dtype)).eval()


def recomputing(name: str) -> dict[str, bool]:
    """The argument that asks for recomputed activations, as segment.py does, for nets that know it."""
    known = signature((NETS | FAMILIES)[name]).parameters
    return {key: True for key in ('checkpoint_activations',) if key in known}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same normal values at each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def compute_of(device: torch.device, amp: str = 'off', **options) -> Compute:
    """The one device that is checked."""
    return Compute(str(device), amp, all_gpus=False, **options)


def training_step_of(
    model: nn.Module,
    compute: Compute,
    loss: Callable = cross_entropy,
    lr: float = 0.01,
    decay: float = 1e-4,
    accum_steps: int = 1,
) -> TrainingStep:
    """The net, placed, as the scripts train it."""
    model = compute.place(model)
    optimizer = torch.optim.SGD(model.parameters(), lr, 0.9, weight_decay=decay, fused=compute.device.type == 'cuda')
    return TrainingStep(model, loss, compute, optimizer, accum_steps)
