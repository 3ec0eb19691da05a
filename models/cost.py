"""What a net costs, parameters and multiply-accumulates, counted from outside."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode


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
        # Two images, because BatchNorm in training mode refuses a single value per channel.
        images = torch.empty(2, 3, *((size, size) if isinstance(size, int) else size))
    with FlopCounterMode(display=False) as counter:
        forward_on_meta(net, images)
    return counter.get_total_flops() // 2 // len(images)  # a multiply-accumulate is two operations


@torch.no_grad()
def forward_on_meta(net: nn.Module, images: Tensor) -> None:
    """Run the net on empty images N x 3 x H x W with stand-ins for its tensors: shapes alone are worked out."""
    tensors = {**dict(net.named_parameters()), **dict(net.named_buffers())}
    images = images.to(next(net.parameters(), images).dtype)
    functional_call(net, {name: value.to('meta') for name, value in tensors.items()}, (images,))
