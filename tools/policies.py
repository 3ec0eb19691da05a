"""Scale policies: which of its two resolutions each elastic block of a net prefers, image by image.

The paper shows such policies in its first figure without a formula. The definition here is our own: a branch responds
to an image with the mean absolute value, over channels and pixels, of what it contributes to the block's sum, both
branches at the block's resolution, so the low one after upsampling. The share of the full resolution is its response
by the sum of both, and the branch that responds more strongly is the preferred one.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial

import torch
from torch import Tensor, nn

from models.elastic import TwoBranch

MAP_SIZES = ('XL', 'L', 'M', 'S')  # of maps at 1/4, 1/8, 1/16 and 1/32 of the picture's resolution, as in the paper


@dataclass(frozen=True)
class Block:
    """A block by its name in the net, the stage whose resolution it has, and the sizes that it works at."""

    name: str
    stage: int  # 1 to 4
    elastic: bool

    @property
    def sizes(self) -> tuple[str, ...]:
        """The one size of a block at one scale; the full and the half one of an elastic block."""
        return MAP_SIZES[self.stage - 1 : self.stage + self.elastic]


@dataclass
class Policies:
    """Of a net's blocks, in the order they run, and of each image the responses N x elastic blocks x (full, half)."""

    blocks: list[Block]
    responses: Tensor

    @property
    def elastic(self) -> list[Block]:
        return [block for block in self.blocks if block.elastic]

    @cached_property
    def shares(self) -> Tensor:
        """The full resolution's share of both responses, N x elastic blocks; a half where neither responds."""
        both = self.responses.sum(2)
        return torch.where(both > 0, self.responses[..., 0] / both, 0.5)

    @cached_property
    def prefers_full(self) -> Tensor:
        """Whether an image has each elastic block work at its full resolution, N x elastic blocks."""
        return self.shares >= 0.5

    def sizes(self, image: int) -> list[str]:
        """The size at which an image goes through each block: the preferred one where there is a choice."""
        full = iter(self.prefers_full[image].tolist())
        return [block.sizes[0 if not block.elastic or next(full) else 1] for block in self.blocks]

    def by_share(self) -> list[int]:
        """The images in the order of their mean share of full resolution, lowest first."""
        return self.shares.mean(1).argsort(stable=True).tolist()


def is_elastic(net: nn.Module) -> bool:
    """Whether any block of the net works at two scales."""
    return any(isinstance(module, TwoBranch) and module.elastic for module in net.modules())


@torch.inference_mode()
def measure(net: nn.Module, batches: Iterable[Tensor], pixels: int) -> Policies:
    """The policies of a net that has elastic blocks, for batches of normalized images N x 3 x `pixels` x `pixels`.

    Raises ValueError if the net is in training mode, in which batch norms would count what they see twice.
    """
    if net.training:
        raise ValueError('a net in training cannot be observed')
    blocks, batch, responses = {}, [], []

    def note(name: str, block: TwoBranch, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        blocks[name] = Block(name, stage_of(output.shape[-1], pixels), block.elastic)
        if block.elastic:  # computed anew, so that `branch_sum` may sum as it likes and pays nothing unobserved
            branches = block.branches(block.entry(inputs[0]))
            batch.append(torch.stack([branch.abs().mean((1, 2, 3)) for branch in branches], 1))

    with ExitStack() as hooks:
        for name, block in net.named_modules():
            if isinstance(block, TwoBranch):
                hooks.enter_context(block.register_forward_hook(partial(note, name)))
        for images in batches:
            net(images)
            responses.append(torch.stack(batch, 1).cpu())
            batch.clear()
    return Policies(list(blocks.values()), torch.cat(responses))


def stage_of(side: int, pixels: int) -> int:
    """The stage of which maps have this side, for a picture of 32 pixels or more: 1/4, 1/8, 1/16 or 1/32 of it.

    DLA and ResNeXt round up where a side is odd, DenseNet's transitions round down. (Only in pictures of 33 to 47
    pixels can 2 be either 1/16 or 1/32; it is taken for the former, which is right for all blocks that are elastic.)
    """
    for stage in range(1, len(MAP_SIZES) + 1):
        if side in (pixels >> stage + 1, -(-pixels >> stage + 1)):
            return stage
    raise ValueError(f'maps of {side} pixels are of no stage of a picture of {pixels}')
