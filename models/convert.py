"""Elastic for nets of other libraries: their grouped bottlenecks cut in halves, one of them at half the resolution.

A bottleneck is relu(gate(norm(C(gate(relu(norm(B(relu(norm(A(x)))))))))) + shortcut(x)) with convs A 1x1, B 3x3, C 1x1,
where one gate at most is a squeeze-and-excitation. It is found by the kinds and shapes of what a block holds, not by
names or classes, and is tried: without scales it must give what the block gave before.
"""

import copy
import math
from collections.abc import Collection
from contextlib import ExitStack
from functools import partial

import torch
from torch import Tensor, nn

from models.converted import ConvertedBottleneck, Parts
from models.cost import forward_on_meta

PROBE = 224  # side of the picture by which the stages are told
PLAIN = nn.Conv2d, nn.BatchNorm2d, nn.ReLU, nn.Identity  # kinds of what a block is made of, gate and shortcut apart


def elasticize(
    net: nn.Module, stages: Collection[int] | None = None, scales: bool = True, ungrouped: bool = False
) -> nn.Module:
    """Make blocks of torchvision's ResNeXt and RegNet, or timm's and its DLA-X, elastic: the net itself, changed.

    Those of stride 1 in the stages named, 1 to 4 for a resolution of 1/4 to 1/32; by default in all but the last, as in
    the paper. The parameters are the same, cut in halves by whole groups. Without `scales` so are the outputs. Convs B
    in one group are cut in two only if `ungrouped`, because that changes the net. Raises ValueError that names the
    first block that does not fit; the net is then as it was.
    """
    blocks, kind, converted = bottlenecks(net), type(net).__name__, {}
    sides = sides_of(net, blocks)
    numbers = {name: round(math.log2(PROBE / after)) - 1 for name, (_, after) in sides.items()}
    last = max(numbers.values(), default=0)
    for name, (before, after) in sides.items():
        if before == after and (numbers[name] < last if stages is None else numbers[name] in stages):
            try:
                converted[name] = convert(blocks[name], scales, ungrouped)
            except Exception as error:  # whatever comes of taking another block for a bottleneck
                raise ValueError(f'{name} of {kind} ({type(blocks[name]).__name__}): {error}') from error
    if not converted:
        raise ValueError(f'{kind} has no bottleneck of stride 1 in these stages')
    for name, block in converted.items():
        net.set_submodule(name, block)
    return net


def bottlenecks(net: nn.Module) -> dict[str, nn.Module]:
    """By name the innermost modules, lists apart, that hold a 3x3 convolution and others."""
    blocks, lists = {}, nn.Sequential | nn.ModuleList | nn.ModuleDict
    for name, module in net.named_modules():
        while isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3) and (name := name.rpartition('.')[0]):
            owner = net.get_submodule(name)
            if not isinstance(owner, lists) and sum(isinstance(m, nn.Conv2d) for m in owner.modules()) > 1:
                blocks[name] = owner
                break
    return blocks


def sides_of(net: nn.Module, blocks: dict[str, nn.Module]) -> dict[str, tuple[int, int]]:
    """Of each block the side of the maps that it takes and gives, for a picture of PROBE pixels."""
    sides = {}

    def note(name: str, module: nn.Module, inputs: tuple, output: Tensor) -> None:
        if not isinstance(inputs[0], Tensor) or not isinstance(output, Tensor):
            raise ValueError(f'{name} of {type(net).__name__} takes or gives more than one map')
        sides[name] = inputs[0].shape[-1], output.shape[-1]

    with ExitStack() as hooks:
        for name, block in blocks.items():
            hooks.enter_context(block.register_forward_hook(partial(note, name)))
        try:
            forward_on_meta(net, torch.empty(2, 3, PROBE, PROBE, device='meta'))
        except Exception as error:  # whatever a net raises that takes other pictures
            raise ValueError(f'{type(net).__name__} does not fit: {error}') from error
    return sides


def parts_of(block: nn.Module) -> Parts:
    """What the block holds; ValueError that says why it is no bottleneck."""
    modules = dict(block.named_modules())
    convs = {name: module for name, module in modules.items() if isinstance(module, nn.Conv2d)}
    plain = [name for name, conv in convs.items() if conv.bias is None]
    kernels = [convs[name].kernel_size[0] for name in plain]
    place = max(kernels.index(3), 1) if 3 in kernels else 1
    chosen = plain[place - 1 : place + 2]
    gates = {name.rpartition('.')[0] for name in convs if name not in plain}
    shortcuts = {name.partition('.')[0] for name in plain if name not in chosen}
    apart = tuple(f'{name}.' for name in gates | shortcuts)
    own = {name: module for name, module in modules.items() if not f'{name}.'.startswith(apart)}
    strange = [name for name, module in own.items() if not any(module.children()) and not isinstance(module, PLAIN)]
    norms = [module for module in own.values() if isinstance(module, nn.BatchNorm2d)]
    if strange:
        raise ValueError(f'{strange[0]} is a {type(modules[strange[0]]).__name__}')
    if kernels[place - 1 : place + 2] != [1, 3, 1] or len(norms) != 3 or max(len(gates), len(shortcuts)) > 1:
        raise ValueError('it is not made of convolutions 1x1, 3x3, 1x1, each with batch norm, and at most one gate')
    widths = {convs[chosen[0]].out_channels, convs[chosen[1]].out_channels, convs[chosen[2]].in_channels}
    if len(widths) > 1 or len(convs) - len(plain) not in (0, 2):
        raise ValueError('its convolutions have several widths, or its gate is not made of two')
    gate, shortcut = (modules[next(iter(names))] if names else None for names in (gates, shortcuts))
    inner = gate is not None and list(modules).index(next(iter(gates))) < list(modules).index(chosen[2])
    return [convs[name] for name in chosen], norms, gate, inner, shortcut


def convert(block: nn.Module, scales: bool, ungrouped: bool) -> ConvertedBottleneck:
    """The block in two halves; ValueError unless it is a bottleneck.

    It is tried with other weights, because its own may hide what it computes: many a norm begins at zero.
    """
    own = parts_of(block)
    convs = own[0]
    if convs[1].groups == 1 and not ungrouped:
        raise ValueError('to cut its 3x3 convolution of one group (ungrouped=True) would change the net')
    whole, random = copy.deepcopy(block).to_empty(device='cpu').double().eval(), torch.Generator().manual_seed(0)
    for tensor in whole.state_dict().values():
        values = torch.rand(tensor.shape, generator=random, device='cpu')
        tensor.copy_(0.2 * values - 0.1 if tensor.dim() > 1 else values + 0.5)
    parts = parts_of(whole)
    (a, b, _), cut = parts[0], ConvertedBottleneck(parts, elastic=False)
    if b.groups == 1:  # without what the cut leaves out
        width = cut.conv1.out_channels
        b.weight.data[:width, width:] = b.weight.data[width:, :width] = 0
    x = torch.rand(2, a.in_channels, 8, 8, dtype=torch.float64, generator=random, device='cpu')
    with torch.no_grad():
        if not torch.allclose(cut(x), whole(x), rtol=1e-9, atol=1e-9):
            raise ValueError('it computes something else than a bottleneck and its shortcut')
    return ConvertedBottleneck(own, scales)
