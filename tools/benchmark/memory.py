"""Peak memory of a training step of the segmenters, activations kept or recomputed.

    python -m tools.benchmark.memory                            all six nets, 1, 2 and 4 images of 513 x 513
    python -m tools.benchmark.memory --nets dla60x --batches 16 --device cuda

Each figure is of two steps in a process of its own: on a CPU the peak of its resident memory, less what it needed
before the net was built; on a GPU the peak of what was allocated there. Where a table has two batches or more, a column
says what their growth gives for 16. ASPP cannot be trained on a single image: there, batch norms are frozen.
"""

from argparse import Namespace
from collections.abc import Callable

import torch

import models
from data.voc import CLASSES
from models.norm import freeze_bn_layers, train_with_frozen_bn
from tools.benchmark.timing import Apart
from utils.cli import Parser, positive_int
from utils.device import Compute
from utils.errors import exit_cleanly
from utils.segmentation import Target, segmentation_loss
from utils.trainer import TrainingStep

RECIPE = 16  # images per update


def make_parser() -> Parser:
    parser = Parser(__doc__)
    nets = list(models.segmenters)
    parser.add_argument('--nets', nargs='+', choices=nets, default=nets, metavar='ARCH', help=', '.join(nets))
    parser.add_argument('--batches', nargs='+', type=positive_int, default=[1, 2, 4], metavar='N', help='images a step')
    parser.add_argument('--crop-size', type=positive_int, default=513, metavar='PIXELS', help='side of the images')
    parser.add_argument('--device', choices=['cpu', 'cuda'], default='cpu', help='where the step runs')
    parser.add_argument('--amp', choices=['off', 'bf16', 'fp16'], default='off', help='mixed precision')
    return parser


def main(args: Namespace) -> None:
    """Print the table, in GiB."""
    batches = sorted(args.batches)
    follows = f' {RECIPE} (from the growth) |' * (len(batches) > 1)
    print(f'| net | activations | {" | ".join(map(str, batches))} |{follows}')
    print(f'| --- | --- |{" ---: |" * (len(batches) + bool(follows))}')
    for arch in args.nets:
        for kind in 'kept', 'recomputed':
            peaks = [peak_of_two(arch, batch, kind == 'recomputed', args) / 2**30 for batch in batches]
            if follows:
                growth = (peaks[-1] - peaks[-2]) / (batches[-1] - batches[-2])
                peaks.append(peaks[-1] + growth * (RECIPE - batches[-1]))
            print(f'| {arch} | {kind} | {" | ".join(f"{peak:.1f}" for peak in peaks)} |', flush=True)


def peak_of_two(arch: str, batch: int, recomputed: bool, args: Namespace) -> int:
    """Bytes that a net and two training steps take: the first one makes the momentum."""
    name = f'{arch}, {"recomputed" if recomputed else "kept"}, {batch} at a time'
    with Apart(name, training, Compute(args.device).device, arch, batch, recomputed, args) as step:
        step()
        step()
        return step.peak()


def training(arch: str, batch: int, recomputed: bool, args: Namespace) -> Callable[[], None]:
    """A net's training step."""
    compute = Compute(args.device, args.amp, all_gpus=False)
    model = models.build_segmenter(arch, len(CLASSES), checkpoint_activations=recomputed)
    if batch < model.smallest_batch:
        freeze_bn_layers(model)
    model = compute.place(model)
    train_with_frozen_bn(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.007, 0.9, fused=compute.device.type == 'cuda')
    training_step = TrainingStep(model, segmentation_loss, compute, optimizer)
    images = compute.images(torch.randn(batch, 3, args.crop_size, args.crop_size))
    labels = torch.randint(0, len(CLASSES), (batch, args.crop_size, args.crop_size), dtype=torch.uint8)
    targets = compute.targets(Target(labels, torch.arange(batch)))

    def step() -> None:
        _, loss = training_step.forward(images, targets)
        training_step.backward(loss)
        training_step.optimizer_step(0.007)

    return step


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
