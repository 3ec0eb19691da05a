"""What a net costs, parameters and multiply-accumulates, counted from outside."""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

IMAGES = 2  # because BatchNorm in training mode refuses a single value per channel


def count_parameters(model: nn.Module) -> int:
    """Number of parameters, those that no forward uses included."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_macs(model: nn.Module | Callable[[], nn.Module], size: int | tuple[int, int] = 224) -> int:
    """Multiply-accumulates of all convolutions and linear layers for one 3 x H x W image.

    `model` is a net or its builder, `size` the side or (H, W). The net runs on the meta device with stand-ins for its
    tensors, so nothing is computed, and neither weights nor statistics change.
    """
    with torch.device('meta'):
        net = model if isinstance(model, nn.Module) else model()
    with FlopCounterMode(display=False) as counter:
        forward_on_meta(net, (size, size) if isinstance(size, int) else size)
    return counter.get_total_flops() // 2 // IMAGES  # a multiply-accumulate is two operations


@torch.no_grad()
def forward_on_meta(net: nn.Module, size: tuple[int, int]) -> None:
    """Run the net on IMAGES empty images of H x W with stand-ins for its tensors: shapes alone are worked out."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    images = torch.empty(IMAGES, 3, *size, device='meta', dtype=next(net.parameters(), torch.empty(0)).dtype)
    functional_call(net, {name: value.to('meta') for name, value in tensors.items()}, (images,))
