"""One process of a job of the tests (tests/launch.py): a script with the small nets in the registry, `checks`, or one
that is `stuck`, as behind a GPU's operations.

    python -m torch.distributed.run --standalone --nproc_per_node=2 tests/job.py classify DIR -a tiny ...
    python -m torch.distributed.run --standalone --nproc_per_node=2 tests/job.py checks FOLDER tiny seg

With KILL=RANK:UPDATE in the environment a process of that rank ends by SIGKILL when it begins that update, once.
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch.nn.functional import cross_entropy

import classify
import docker_classify
import models
import multilabel_classify
import segment
from models.norm import freeze_norms, train_but_frozen_norms
from tests.conftest import TinyNet, TinySegmenter
from utils.device import Compute
from utils.distributed import average_over_processes, job, rank, world_size
from utils.errors import exit_cleanly
from utils.loader import DeviceLoader, EvalBatches
from utils.logger import Reporter
from utils.metrics import TopErrors
from utils.multilabel import MultiLabelScores, multilabel_loss
from utils.segmentation import SegmentationScores, Target, segmentation_loss, shared_segmentation_loss
from utils.signals import StopRequest
from utils.trainer import Learner, evaluate

CPU = Compute('cpu')
SIZES = 1, 2, 3, 5, 7, 20  # of sets
SCRIPTS = {script.__name__: script for script in (classify, docker_classify, multilabel_classify, segment)}
SEGMENTERS = 'seg', 'dla60x'


class Noise(torch.utils.data.Dataset):
    """So many images with a target of a task each, the same in every process."""

    def __init__(self, samples: int, task: str):
        generator = torch.Generator().manual_seed(samples)
        self.images = torch.randint(0, 256, (samples, 3, 16, 16), dtype=torch.uint8, generator=generator)
        self.labels = torch.randint(0, 7, (samples, 16, 16), dtype=torch.uint8, generator=generator)
        self.task = task

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        labels = self.labels[index]
        targets = {'imagenet': int(labels[0, 0]), 'coco': labels[:3, :7] > 3, 'voc': Target(labels, index)}
        return self.images[index], targets[self.task]


def measures(share: bool) -> dict:
    """The results of a net with fixed weights on sets of all sizes and tasks, shared by the processes or not."""
    torch.manual_seed(0)
    classes = [str(number) for number in range(7)]
    kinds = {
        'imagenet': (TinyNet(7), cross_entropy, lambda samples: TopErrors(CPU.device)),
        'coco': (TinyNet(7), multilabel_loss, lambda samples: MultiLabelScores(CPU.device, classes)),
        'voc': (
            TinySegmenter(7),
            segmentation_loss,
            lambda samples: SegmentationScores(CPU.device, classes, samples, lambda *_: None),
        ),
    }
    found = {}
    for task, (net, loss, metrics) in kinds.items():
        learner = Learner(net, net, loss, CPU, None, None)
        for samples in SIZES:
            part = (rank(), world_size()) if share else (0, 1)
            groups = [range(samples // 2), range(samples // 2, samples)]  # as if of two sizes
            loader = DeviceLoader(Noise(samples, task), EvalBatches(groups, 4, *part), CPU, 0)
            with StopRequest() as stop:
                found[task, samples] = evaluate(learner, loader, metrics(samples), Reporter(1000), stop)
    return found


def accumulated(name: str, shares: int = 1, share: int = 0) -> dict[str, torch.Tensor]:
    """Gradients after two micro-batches of twelve samples, of which this process has its share; before the second too.

    In float64, with frozen batch norms. A segmenter's samples hold different numbers of pixels that count.
    """
    torch.manual_seed(0)
    segmenter = name in SEGMENTERS
    net = freeze_norms((models.segmenters if segmenter else models.classifiers)[name](7).double())
    loss = (shared_segmentation_loss if shares > 1 else segmentation_loss) if segmenter else cross_entropy
    learner = Learner(net, CPU.runner(net, train=True), loss, CPU, torch.optim.SGD(net.parameters(), 0), None, 2)
    train_but_frozen_norms(net)
    found = {}
    for step in range(2):
        images = torch.randn(12, 3, 32, 32, dtype=torch.float64)
        labels = torch.randint(0, 7, (12, 32, 32))
        for number, label in enumerate(labels):
            label[: 2 * number] = 255
        own = torch.arange(12).tensor_split(shares)[share]
        targets = Target(labels[own], own) if segmenter else labels[own, 31, 31]
        with learner.exchange(step):
            outputs = learner.runner(images[own])
            learner.backward(learner.loss(outputs, targets))
        gradients = {key: value.grad.clone() for key, value in net.named_parameters() if value.grad is not None}
        found |= {f'{step} {key}': value for key, value in gradients.items()}
    return found


def normalised(number: int) -> torch.Tensor:
    """Running means after passes of images of the process of this number."""
    torch.manual_seed(0)
    net = TinyNet(7)
    runner = CPU.runner(net, train=True)
    torch.manual_seed(number)
    for _ in range(3):
        runner(torch.randn(2, 3, 32, 32)).sum().backward()
    return net.bn3.running_mean


def checks(folder: Path, *names: str) -> None:
    """Write the gradients of these nets that this process has, what it measures with the others, means and averages."""
    gradients = {name: accumulated(name, world_size(), rank()) for name in names}
    values = [torch.tensor([float(rank())]), torch.tensor(rank())]  # a mean, a count
    average_over_processes(values)
    found = {'averages': [value.item() for value in values], 'means': normalised(rank())}
    torch.save(found | {'gradients': gradients, 'measures': measures(share=True)}, folder / f'{rank()}.pt')


def die(learner: Learner, *arguments) -> None:
    """Learner.update, or the end of this process."""
    learner.updates = getattr(learner, 'updates', 0) + 1
    first = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0'
    if first and os.environ['KILL'] == f'{rank()}:{learner.updates}':
        os.kill(os.getpid(), signal.SIGKILL)
    update(learner, *arguments)


update = Learner.update


def main(arguments: list[str]) -> None:
    """Run what the arguments name."""
    kind, *arguments = arguments
    models.classifiers['tiny'] = TinyNet
    models.segmenters |= {'tiny': TinySegmenter, 'seg': TinySegmenter}
    if 'KILL' in os.environ:
        Learner.update = die
    if kind == 'stuck':
        with job(classify.make_parser().parse_args(['', '--device', 'cpu', '--dist-timeout', '4'])):
            print('Stuck', flush=True)
            time.sleep(1000)
    elif kind == 'checks':
        with job(classify.make_parser().parse_args(['', '--device', 'cpu'])):
            checks(Path(arguments[0]), *arguments[1:])
    else:
        script = SCRIPTS[kind]
        exit_cleanly(lambda: script.main(script.make_parser().parse_args(arguments)))


if __name__ == '__main__':
    main(sys.argv[1:])
