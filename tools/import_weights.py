"""Turns ImageNet weights of torchvision or timm into a checkpoint of a base net of ours, exactly.

    python -m tools.import_weights torchvision/resnext50_32x4d resnext50_32x4d-7cdf4587.pth resnext50.pth.tar
    python classify.py DIR --evaluate --resume resnext50.pth.tar -a resnext50

    torchvision/  resnext50_32x4d  densenet201
    timm/         resnext50_32x4d  resnext101_32x4d  seresnext50_32x4d  dla60x  dla102x  densenet201

WEIGHTS is a file with the library's state dict: .pth, .pth.tar or .bin of PyTorch, or .safetensors. Outputs are the
library's up to rounding; every batch norm has eps 1e-5 there too. Means and deviations of colors are the same, but
crops are not: where a library's weights ask for another one than the central 224 of 256 (0.875), for instance 224 of
232, or for bicubic resizing, classify.py, which does neither, measures another error than the library publishes.
"""

import re
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

import models
from tools.branches import halved, joined
from utils import checkpoint
from utils.checkpoint import check_fit, read_weights, submodule_state_dict
from utils.cli import Parser
from utils.errors import UserError, exit_cleanly
from utils.run import check_weights

SOURCES = {  # a library's net: which of ours it is
    'torchvision/resnext50_32x4d': 'resnext50',
    'torchvision/densenet201': 'densenet201',
    'timm/resnext50_32x4d': 'resnext50',
    'timm/resnext101_32x4d': 'resnext101',
    'timm/seresnext50_32x4d': 'se_resnext50',
    'timm/dla60x': 'dla60x',
    'timm/dla102x': 'dla102x',
    'timm/densenet201': 'densenet201',
}


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('source', choices=list(SOURCES), metavar='SOURCE', help='library/net, one of those above')
    parser.add_argument('weights', type=Path, metavar='WEIGHTS', help="file with the library's state dict")
    parser.add_argument('out', type=Path, metavar='OUT.pth.tar', help='checkpoint to write; must not exist')
    return parser


def main(args: Namespace) -> None:
    """Read, translate, write, and say what was not there to be taken."""
    if args.out.exists():
        raise UserError(f'{args.out} exists; it is not written over')
    arch = SOURCES[args.source]
    torch.manual_seed(0)  # of projections that nothing uses
    net = models.build_classifier(arch)
    whole = translated(read_weights(args.weights), net, args.weights)
    net.load_state_dict(net.state_dict() | halved(net, whole))
    check_weights(net)
    content = {'epoch': 0, 'task': 'imagenet', 'arch': arch, 'state_dict': checkpoint.state_dict(net)}
    checkpoint.write(content, args.out)
    print(f'=> {args.out}: {arch} from {args.source}')
    if idle := unused(net):
        print(f'   as initialised: {", ".join(idle)}')


def translated(state: Mapping[str, Tensor], net: nn.Module, path: Path) -> dict[str, Tensor]:
    """The library's state under our names, blocks still whole; UserError unless every name and shape fits.

    `net` gives names and shapes. Files before PyTorch 0.4.1 lack batch norm's counts, which then start at 0.
    """
    own, idle = joined(net), submodule_state_dict(net, unused(net)).keys()
    theirs = {name: library_name(name) for name in own if name not in idle}
    given = {name_of_today(name): value for name, value in state.items() if name not in idle}
    if len(given) < len(state.keys() - idle):
        raise UserError(f'{path} holds the same tensor under an old and a new name')
    counts = {theirs[name]: torch.zeros((), dtype=torch.int64) for name in theirs if not own[name].dim()}
    if not counts.keys() & given.keys():
        given |= counts
    check_fit({theirs[name]: own[name] for name in theirs}, given, path)
    return {name: given[theirs[name]] for name in theirs}


def library_name(name: str) -> str:
    """What the libraries call a tensor of ours: DenseNet's last norm and SE's gates have other names there."""
    name = re.sub(r'^features\.norm_final\.', 'features.norm5.', name)
    return re.sub(r'\.selayer\.conv([12])\.', r'.se.fc\1.', name)


def name_of_today(name: str) -> str:
    """DenseNets of 2017, such as torchvision's densenet201-c1103571.pth, say norm.1 for norm1."""
    return re.sub(r'(\.denselayer\d+\.(?:norm|conv))\.([12]\.)', r'\1\2', name)


def unused(net: nn.Module) -> list[str]:
    """DLA's projections that nothing uses or trains, which the library spells alike.

    timm's nets lack them, and where files hold them they are not trained either.
    """
    modules = net.named_modules()
    return [name for name, module in modules if name.endswith('.project') and not module[0].weight.requires_grad]


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
