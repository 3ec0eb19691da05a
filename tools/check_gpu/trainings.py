"""Short trainings by the project's own loops: their data, their run, and the check that a killed one goes on."""

from argparse import Namespace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from tools.check_gpu.golden import Samples
from tools.check_gpu.nets import FAMILIES, compute_of, training_step_of
from tools.check_gpu.result import Result, at_most, distance
from utils import checkpoint
from utils.checkpoint import CheckpointMeta
from utils.loader import DeviceLoader, TrainBatchSampler
from utils.logger import Log, Reporter
from utils.metrics import TopKError
from utils.run import Files, Run, TrainState
from utils.segmentation import Target
from utils.signals import SignalHandler
from utils.trainer import TrainingStep, train_epoch

CLASSES = [str(number) for number in range(10)]
LAST = 'last.pth'


def noise(task: str, count: int, side: int) -> Samples:
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


class Silent(Reporter):
    """Says nothing."""

    def __init__(self):
        super().__init__(every=1)

    def say(self, line: str) -> None:
        pass

    def train_line(self, *_) -> None:
        pass


class Losses:
    """Metrics that only keep the losses."""

    smooth_loss = None

    def __init__(self):
        self.values: list[Tensor] = []

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        self.values.append(loss.detach())

    def reduce(self) -> None:
        pass

    def compute(self) -> dict[str, float]:
        return {}


class QuietLog(Log):
    """Draws no curves, which takes longer than a short training."""

    def draw(self) -> None:
        pass


def new_run(folder: Path, training_step: TrainingStep, epochs: int, save_steps: int = 0) -> Run:
    """A run that says nothing."""
    args = Namespace(output=folder, epochs=epochs, save_steps=save_steps, seed=0, start_epoch=0)
    state = TrainState(training_step.model, training_step.optimizer, training_step.scaler)
    plan = {'samples': 8, 'micro-batch': 4, 'accumulate': training_step.accum_steps}
    run = Run(args, CheckpointMeta('imagenet', 'net', CLASSES), Files(LAST), state, plan, Silent())
    run.log = QuietLog(folder)
    return run


class Killed(BaseException):
    """Ends a training as a kill does: nothing is saved."""


def goes_on_after_a_kill(device: torch.device) -> Result:
    """Killed in its last update and called again, a run ends where two undisturbed ones do, as far as these agree."""
    with TemporaryDirectory() as folder:
        one, other = trained(device, Path(folder, 'one')), trained(device, Path(folder, 'other'))
        try:
            trained(device, Path(folder, 'killed'), kill_at=4)
        except Killed:
            saved = checkpoint.read(Path(folder, 'killed', LAST))
        resumed = trained(device, Path(folder, 'killed'))
    if (saved.epoch, saved.position['step']) != (1, 1):
        return Result(False, f'saved at epoch {saved.epoch}, {saved.position}', 'saved at epoch 1, step 1')
    # Two runs on a GPU can agree to the bit by chance, where another order of additions would be as right.
    agreed = distance(other, one)
    return at_most(max(4 * agreed, 1e-5), {f'state; two whole runs {agreed:.1e}': distance(resumed, one)})


def trained(device: torch.device, folder: Path, kill_at: int = 0) -> list[Tensor]:
    """Weights, statistics and momentum after two epochs of two updates, from the folder's checkpoint on."""
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    dataset, compute = noise('imagenet', 8, 64), compute_of(device)
    training_step, updates = training_step_of(FAMILIES['resnext'](len(CLASSES)), compute, lr=0.05), []

    def before_update(*_) -> None:
        updates.append(len(updates) + 1)
        if updates[-1] == kill_at:
            raise Killed

    training_step.optimizer.register_step_pre_hook(before_update)
    run, last = new_run(folder, training_step, epochs=2, save_steps=1), folder / LAST
    run.begin(checkpoint.read(last) if last.exists() else None, str(compute))
    loader = DeviceLoader(dataset, TrainBatchSampler(len(dataset), 4, run.seed), compute, 0)
    while run.epoch < run.args.epochs:
        metrics = run.resumed_metrics(TopKError(device))
        results = train_epoch(training_step, lambda epoch: 0.05, loader, metrics, run, SignalHandler())
        run.finish_epoch(0.05, train=results)
    momenta = [state['momentum_buffer'] for state in training_step.optimizer.state.values()]
    return [value for value in training_step.model.state_dict().values() if value.is_floating_point()] + momenta
