"""The nets that checks and tests build: all of full size by the names of tests/golden, and a shallow one a family."""

from collections.abc import Callable
from functools import partial
from inspect import signature

import torch
from torch import Tensor, nn

from models.deeplab import DeepLab
from models.densenet import DenseNet
from models.dla import DLA
from models.dla_up import DLASegmenter
from models.resnext import ResNeXt
from tools.benchmark.nets import loss_of_first_class
from tools.check_gpu.golden import NETS, Samples, load_weights
from utils.device import Compute
from utils.segmentation import Target
from utils.step import TrainingStep


def dla_up(num_classes: int = 21, checkpoint_activations: bool = False) -> DLASegmenter:
    base = DLA((1, 1, 1, 1), elastic=True)
    return DLASegmenter(base, num_classes, checkpoint_activations=checkpoint_activations)


# Few layers, and all that is in the nets: blocks at two scales and halves at one, identities and projections as
# shortcuts, trees in trees with the children they are handed.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    'resnext': partial(ResNeXt, (2, 1, 1, 1), se=True, elastic=True),
    'dla': partial(DLA, (1, 2, 1, 1), residual_root=True),
    'dla_elastic': partial(DLA, (1, 1, 1, 1), elastic=True, cardinality=50),
    'densenet': partial(DenseNet, (1, 1, 1, 1)),
    'densenet_elastic': partial(DenseNet, (2, 1, 1, 1), elastic=True),
    'deeplab': partial(DeepLab, (2, 1, 1), elastic=True),
    'dla_up': dla_up,
}
CLASSES = [str(number) for number in range(10)]  # of noise_set


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
    return {'checkpoint_activations': True} if 'checkpoint_activations' in known else {}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same normal values at each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def noise_set(task: str, count: int, side: int) -> Samples:
    """Images with targets of a task, of ten classes, the same at each call."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8, generator=generator)
    maps = torch.randint(0, 10, (count, side, side), dtype=torch.uint8, generator=generator)
    targets = {
        'imagenet': [int(labels[0, 0]) for labels in maps],
        'coco': [labels[:3, :10] > 7 for labels in maps],
        'voc': [Target(labels, number) for number, labels in enumerate(maps)],
    }
    return Samples(images, targets[task], len(CLASSES))


def compute_of(device: torch.device, amp: str = 'off', **options) -> Compute:
    """The one device that is checked; to search for algorithms would take longer than these few steps."""
    compute = Compute(str(device), amp, all_gpus=False, **options)
    torch.backends.cudnn.benchmark = False
    return compute


def training_step_of(
    model: nn.Module, compute: Compute, loss: Callable = loss_of_first_class, accum_steps: int = 1, **recipe
) -> TrainingStep:
    """The net, placed, as the scripts train it; `recipe` is of its SGD."""
    model = compute.place(model)
    recipe = {'lr': 0.01, 'momentum': 0.9, 'weight_decay': 1e-4, **recipe}
    optimizer = torch.optim.SGD(model.parameters(), **recipe, fused=compute.device.type == 'cuda')
    return TrainingStep(model, loss, compute, optimizer, accum_steps)


def gradients_of(training_step: TrainingStep, images: Tensor) -> list[Tensor]:
    """Those of one step, whose loss needs no targets."""
    training_step(0, training_step.compute.images(images), None)
    return [parameter.grad for parameter in training_step.model.parameters() if parameter.grad is not None]
