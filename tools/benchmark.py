"""How fast nets are tested and trained here, beside the same net the reference's way and beside torchvision's.

    python -m tools.benchmark                                    resnext50_elastic, tested on 16 images of 224 x 224
    python -m tools.benchmark --nets dla60x dla60x_elastic --rivals --train               training steps of two nets
    python -m tools.benchmark --nets resnext50/segmenter --rivals segmenter --device cuda --amp off bf16 fp16 --compile

The ways take turns, so that a machine that slows down for a while slows all of them; medians and ranges are printed,
and the share of what one large matrix product reaches in the same precision, taking its turn with them. The
reference's way is contiguous, in float32, with batch norms on their own. On a GPU the peak of memory is told too.
"""

import json
import statistics
import time
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy
from torchvision import models as torchvision_models
from torchvision.models import segmentation

import models
from utils.arguments import Parser, positive
from utils.compute import DTYPES, Compute
from utils.cost import count_macs
from utils.errors import exit_cleanly
from utils.learner import Learner

NETS = {
    **models.classifiers,
    **{f'{name}/segmenter': build for name, build in models.segmenters.items()},
}
RIVALS = {
    'resnext50': torchvision_models.resnext50_32x4d,
    'resnext101': torchvision_models.resnext101_32x8d,
    'densenet201': torchvision_models.densenet201,
    'segmenter': lambda: Outputs(segmentation.deeplabv3_resnet50(weights_backbone=None, aux_loss=False)),
}
Step = Callable[[], None]


class Outputs(torch.nn.Module):
    """torchvision's segmenter, returning the map alone."""

    def __init__(self, net: torch.nn.Module):
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """N x 3 x H x W -> N x classes x H x W."""
        return self.net(x)['out']


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--nets', nargs='+', choices=list(NETS), default=['resnext50_elastic'], metavar='NET', help=', '.join(NETS))
    add('--rivals', nargs='*', choices=list(RIVALS), default=['resnext50'], metavar='NAME',
        help=f"torchvision's nets beside them: {', '.join(RIVALS)}")  # fmt: skip
    add('--train', action='store_true', help='time training steps, else tests')
    add('--amp', nargs='+', choices=list(DTYPES), default=['off', 'bf16'], help='precisions')
    add('--compile', action='store_true', help='also compiled')
    add('-b', '--batch-size', type=positive, default=16, metavar='N', help='images at once')
    add('--image-size', type=positive, default=224, metavar='PIXELS', help='side of an image')
    add('--rounds', type=positive, default=7, metavar='N', help='measurements of each way')
    add('--device', choices=['auto', 'cuda', 'mps', 'cpu'], default='auto', help='where')
    add('--json', type=Path, metavar='FILE', help='write the numbers too')
    return parser


def main(args: Namespace) -> None:
    """Measure and print."""
    steps, work = {}, {}
    for name in args.nets:
        net = NETS[name]
        add_ways(steps, work, name, net, args, reference=True)
    for name in args.rivals:
        add_ways(steps, work, f"torchvision's {name}", RIVALS[name], args, reference=False)
    for amp in args.amp:
        steps[f'matrix product, {amp}'], work[f'matrix product, {amp}'] = matrix_product(args, amp)
    seconds = interleaved(steps, args.rounds)
    rows = [row(name, seconds, work, args) for name in steps]
    print(f'{"":48} images/s (range){"":8} times the reference   TFLOP/s, of a matrix product')
    for values in rows:
        print(in_words(values))
    if args.json:
        facts = {'args': vars(args), 'device': str(Compute(args.device)), 'torch': torch.__version__}
        args.json.write_text(json.dumps({**facts, 'rows': rows}, default=str, indent=1))


def add_ways(
    steps: dict[str, Step],
    work: dict[str, float],
    name: str,
    build: Callable[[], torch.nn.Module],
    args: Namespace,
    reference: bool,
) -> None:
    """Add the ways to run a net: the reference's, ours in each precision, and compiled."""
    with torch.device('meta'):
        macs = count_macs(build(), args.image_size)
    ways = {f'{name}, {amp}': Compute(args.device, amp) for amp in args.amp}
    if reference:
        ways = {f'{name}, reference': Compute(args.device, channels_last=False)} | ways
    if args.compile:
        ways |= {f'{name}, {amp}, compiled': Compute(args.device, amp, compile=True) for amp in args.amp}
    for way, compute in ways.items():
        plain = way.endswith('reference') or not reference
        steps[way] = (training if args.train else evaluation)(build, compute, args, plain)
        work[way] = 2 * macs * args.batch_size * (3 if args.train else 1)


def learner_and_batch(
    build: Callable[[], torch.nn.Module], compute: Compute, args: Namespace
) -> tuple[Learner, torch.Tensor, torch.Tensor]:
    """A net with its optimizer, images, and class indices of the shape its outputs ask for."""
    torch.manual_seed(0)
    model = compute.place(build())
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, 0.9)
    learner = Learner(model, compute.runner(model, train=True), cross_entropy, compute, optimizer, lambda epoch: 1e-3)
    images = compute.images(torch.randn(args.batch_size, 3, args.image_size, args.image_size))
    with torch.no_grad():
        shape = model.eval()(images[:1]).shape
    model.train()
    return learner, images, torch.zeros(args.batch_size, *shape[2:], dtype=torch.int64, device=compute.device)


def training(build: Callable[[], torch.nn.Module], compute: Compute, args: Namespace, plain: bool) -> Step:
    """A training step, the same for every net."""
    learner, images, targets = learner_and_batch(build, compute, args)

    def step() -> None:
        _, loss = learner.forward(images, targets)
        learner.backward(loss)
        learner.update(1e-3)
        loss.item()

    return step


def evaluation(build: Callable[[], torch.nn.Module], compute: Compute, args: Namespace, plain: bool) -> Step:
    """A test of a batch, as our scripts do it or, `plain`, calling the net as it is."""
    learner, images, _ = learner_and_batch(build, compute, args)
    if plain:
        learner.model.eval()
        model = compute.place_for_test(learner.model)
        runner, images = compute.runner(model, train=False), images.to(compute.dtype)
    else:
        with torch.inference_mode():
            runner = learner.tester()

    def step() -> None:
        with torch.inference_mode():
            runner(images).flatten()[0].item()

    return step


def matrix_product(args: Namespace, amp: str) -> tuple[Step, float]:
    """A product of two matrices, and its floating-point operations."""
    compute = Compute(args.device, amp)
    side = 8192 if compute.device.type == 'cuda' else 2048
    matrix = torch.randn(side, side, device=compute.device, dtype=compute.dtype)
    return lambda: (matrix @ matrix)[0, 0].item(), 2.0 * side**3


def interleaved(steps: dict[str, Step], rounds: int) -> dict[str, list[float]]:
    """Seconds of each step in each round, after two rounds that do not count."""
    seconds = {name: [] for name in steps}
    for number in range(rounds + 2):
        for name, step in steps.items():
            start = time.perf_counter()
            step()
            if number > 1:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def row(name: str, seconds: dict[str, list[float]], work: dict[str, float], args: Namespace) -> dict[str, float | str]:
    """The numbers of a way: images per second, and how they compare."""
    times = sorted(seconds[name])
    median = statistics.median(times)
    net, *_ = name.split(', ')
    of_reference = seconds.get(f'{net}, reference', seconds.get(f'{args.nets[0]}, reference', times))
    amp = next((part for part in name.split(', ') if part in DTYPES), 'off')
    product = f'matrix product, {amp if amp in args.amp else args.amp[0]}'
    speed = work[name] / median
    return {
        'name': name,
        'images_per_second': args.batch_size / median,
        'lowest': args.batch_size / times[-1],
        'highest': args.batch_size / times[0],
        'times_reference': statistics.median(of_reference) / median,
        'tflops': speed / 1e12,
        'share': speed / (work[product] / statistics.median(seconds[product])),
    }


def in_words(values: dict[str, float | str]) -> str:
    """A line of the table."""
    if values['name'].startswith('matrix'):
        return f'{values["name"]:48}{"":49}{values["tflops"]:7.3f}'
    spread = f'({values["lowest"]:.2f} to {values["highest"]:.2f})'
    speed = f'{values["images_per_second"]:8.2f} {spread:20}'
    flops = f'{values["tflops"]:7.3f} {values["share"]:6.0%}'
    return f'{values["name"]:48}{speed} {values["times_reference"]:12.2f}{"":7}{flops}'


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
