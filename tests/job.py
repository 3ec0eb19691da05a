"""One process of a job of the tests (tests/launch.py): a script with the small nets in the registry, `checks`, `stuck`.

    python -m torch.distributed.run --standalone --nproc_per_node=2 tests/job.py classify DIR -a tiny ...
    python -m torch.distributed.run --standalone --nproc_per_node=2 tests/job.py checks FOLDER

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
from tests.conftest import TinyNet, TinySegmenter
from utils.device import Compute
from utils.distributed import all_reduce_mean, job, rank, world_size
from utils.errors import exit_cleanly
from utils.loader import DeviceLoader, EvalBatchSampler
from utils.logger import SpeedReporter
from utils.metrics import TopKError
from utils.multilabel import MultiLabelScores, multilabel_loss
from utils.segmentation import SegmentationScores, Target, segmentation_loss
from utils.signals import SignalHandler
from utils.step import Evaluator, TrainingStep
from utils.trainer import evaluate

CPU = Compute('cpu')
SCRIPTS = {script.__name__: script for script in (classify, docker_classify, multilabel_classify, segment)}


def measures(share: bool) -> dict:
    """The results of nets with fixed weights on sets of all sizes and tasks, shared by the processes or not.

    After each batch there is a line of averages over the processes, which some have a batch fewer for.
    """
    torch.manual_seed(0)
    net, segmenter, classes = TinyNet(7), TinySegmenter(7), [str(number) for number in range(7)]
    part, found = (rank(), world_size()) if share else (0, 1), {}
    for samples in 1, 2, 3, 5, 7, 20:
        images = torch.randint(0, 256, (samples, 3, 16, 16), dtype=torch.uint8)
        labels = torch.randint(0, 7, (samples, 16, 16), dtype=torch.uint8)
        masks = SegmentationScores(CPU.device, classes, samples, lambda *_: None)
        tasks = {
            'imagenet': (net, cross_entropy, TopKError(CPU.device), labels[:, 0, 0].tolist()),
            'coco': (net, multilabel_loss, MultiLabelScores(CPU.device, classes), labels[:, :3, :7] > 3),
            'voc': (segmenter, segmentation_loss, masks, list(map(Target, labels, range(samples)))),
        }
        groups = [range(samples // 2), range(samples // 2, samples)]  # as if of two sizes
        for task, (model, loss, metrics, targets) in tasks.items():
            loader = DeviceLoader(list(zip(images, targets, strict=True)), EvalBatchSampler(groups, 4, *part), CPU, 0)
            with SignalHandler() as stop:
                found[task, samples] = evaluate(Evaluator(model, CPU), loss, loader, metrics, SpeedReporter(1), stop)
    return found


def normalized(number: int) -> torch.Tensor:
    """Running means after passes of images of the process of this number."""
    torch.manual_seed(0)
    net = TinyNet(7)
    runner = CPU.runner(net, train=True)
    torch.manual_seed(number)
    for _ in range(3):
        runner(torch.randn(2, 3, 32, 32)).sum().backward()
    return net.bn3.running_mean


def checks(folder: Path) -> None:
    """Write what this process measures with the others, its running means, and averages of a mean and a count."""
    same = torch.linspace(0, 1, 100)  # everywhere, which averages are, too
    values = [torch.tensor([float(rank())]), torch.tensor(rank()), same.clone()]
    all_reduce_mean(values)
    all_reduce_mean([])
    averages = [values[0].item(), values[1].item(), torch.equal(values[2], same)]
    found = {'averages': averages, 'means': normalized(rank()), 'measures': measures(share=True)}
    torch.save(found, folder / f'{rank()}.pt')


def stuck(_: Path) -> None:
    """Be as behind operations of a GPU that wait for a process that is gone."""
    print('Stuck', flush=True)
    time.sleep(1000)


def die(training_step: TrainingStep, *arguments) -> None:
    """TrainingStep.optimizer_step, or the end of this process."""
    training_step.updates = getattr(training_step, 'updates', 0) + 1
    first = os.environ.get('TORCHELASTIC_RESTART_COUNT', '0') == '0'
    if first and os.environ['KILL'] == f'{rank()}:{training_step.updates}':
        os.kill(os.getpid(), signal.SIGKILL)
    optimizer_step(training_step, *arguments)


optimizer_step = TrainingStep.optimizer_step


def main(arguments: list[str]) -> None:
    """Run what the arguments name."""
    kind, *arguments = arguments
    models.classifiers['tiny'], models.segmenters['tiny'] = TinyNet, TinySegmenter
    if 'KILL' in os.environ:
        TrainingStep.optimizer_step = die
    if kind in SCRIPTS:
        script = SCRIPTS[kind]
        exit_cleanly(lambda: script.main(script.make_parser().parse_args(arguments)))
    else:
        args = classify.make_parser().parse_args([*arguments, '--device', 'cpu'])
        with job(args):
            {'checks': checks, 'stuck': stuck}[kind](args.data)


if __name__ == '__main__':
    main(sys.argv[1:])
