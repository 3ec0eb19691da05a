"""The nets that are compared, the recipe that all are trained by, and their runs."""

import json
import sys
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torchvision.models.regnet import BlockParams, RegNet
from torchvision.transforms import RandomHorizontalFlip
from tqdm import tqdm

import classify
from data.fashion_mnist import CLASSES as GARMENTS
from data.scenes import CLASS_NAMES
from models import libraries
from models.cost import count_macs, count_parameters
from models.resnext import ResNeXt
from tools.miniature.data import SIDE, THIRDS, ScaledObjects, jittered_photos, shapes
from tools.results import ToolReporter
from utils.checkpoint import CheckpointMeta
from utils.device import Compute, pick_device
from utils.errors import UserError
from utils.files import write_files
from utils.loader import DeviceLoader, EvalBatchSampler, available_cores
from utils.metrics import Metrics
from utils.run import CheckpointNames
from utils.schedules import milestones
from utils.signals import SignalHandler
from utils.step import Evaluator
from utils.trainer import Trainer, evaluate

RESNEXTS = {
    'base': {'depths': (1, 2, 3, 1), 'base_width': 4, 'elastic': False},
    'elastic': {'depths': (2, 4, 2, 1), 'base_width': 4, 'elastic': True},
    'deep': {'depths': (2, 4, 2, 1), 'base_width': 4, 'elastic': False},
    'deep-equal-cost': {'depths': (2, 4, 2, 1), 'base_width': 3.3, 'elastic': False},
}
CARDINALITY = 8
REGNET = {
    'depths': [2, 4, 2, 1],
    'widths': [64, 128, 256, 512],
    'group_widths': [16] * 4,
    'bottleneck_multipliers': [1.0] * 4,
    'strides': [2] * 4,
    'se_ratio': 0.25,
}
NETS = {**RESNEXTS, 'regnety': REGNET, 'regnety-elastic': REGNET}
CLASSES = {'shapes': len(CLASS_NAMES), 'photos': len(GARMENTS)}
DATA_SEED = 0  # of the pictures, the same for every net and seed
LAST = 'checkpoint.pth.tar'


@dataclass(frozen=True)
class Recipe:
    """How every net is trained; the training pictures fill a whole number of epochs."""

    updates: int = 1200
    batch_size: int = 32  # also that of the batch norms in the paper's runs
    lr: float = 0.05  # after 400 updates of the base net better than 0.005, and than 0.02 on photos
    momentum: float = 0.9
    weight_decay: float = 1e-4
    drops: tuple[float, ...] = (0.6, 0.85)  # parts of the training after which the rate is divided by 10
    train: tuple[int, int] = (6400, 12800)  # pictures of shapes and of photos
    test: tuple[int, int] = (2400, 4000)

    def epochs(self, pictures: int) -> int:
        """In how many passes over so many pictures the updates are done."""
        return self.updates * self.batch_size // pictures


RECIPE = Recipe()


class ScaleError(Metrics):
    """Loss, and top-1 error in %, overall (`err1`) and of each third of the sizes; counted in one process."""

    def __init__(self, device: torch.device):
        super().__init__(device, 'err1')
        self.wrong, self.seen = torch.zeros(2, len(THIRDS), dtype=torch.int64, device=device)

    def update(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss (), outputs N x C, labels and thirds N x 2."""
        labels, thirds = targets.T
        wrong = outputs.argmax(1) != labels
        super().update(loss, outputs, targets)
        self.averages['err1'].add(100 * wrong.sum(), len(wrong))
        self.seen += thirds.bincount(minlength=len(THIRDS))
        self.wrong += thirds[wrong].bincount(minlength=len(THIRDS))

    def progress(self) -> str:
        """Last value and average so far."""
        loss, err1 = self.averages.values()
        return f'Loss {loss.value:.4f} ({loss.average:.4f})\tErr@1 {err1.value:.3f} ({err1.average:.3f})'

    def compute(self) -> dict[str, Any]:
        """loss, err1, the error of each third (None of an empty one), and how many pictures each third has."""
        counts = zip(THIRDS, self.wrong.tolist(), self.seen.tolist(), strict=True)
        thirds = {name: 100 * wrong / seen if seen else None for name, wrong, seen in counts}
        return {**super().compute(), **thirds, 'pictures': dict(zip(THIRDS, self.seen.tolist(), strict=True))}

    def summary(self, results: dict[str, Any]) -> str:
        """The line that ends an evaluation."""
        return f' * Err@1 {results["err1"]:.3f}'

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), 'wrong': self.wrong.tolist(), 'seen': self.seen.tolist()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.wrong.copy_(torch.tensor(state['wrong']))
        self.seen.copy_(torch.tensor(state['seen']))


@dataclass(frozen=True)
class Study:
    """Where the runs are kept, and what they share."""

    output: Path
    source: Path
    recipe: Recipe
    device: str

    def folder(self, data: str, net: str, seed: int) -> Path:
        """Where a run is kept."""
        return self.output / f'{data}_{net}_{seed}'

    def noted(self, data: str, net: str, seed: int) -> Path:
        """What a run came to, once it is done."""
        return self.folder(data, net, seed) / 'result.json'

    def keep_recipe(self) -> None:
        """Note the recipe of the folder's runs; UserError if those that are there had another, or other nets."""
        path = self.output / 'recipe.json'
        own = {'cardinality': CARDINALITY, **asdict(self.recipe), 'device': pick_device(self.device).type, 'nets': NETS}
        own = json.loads(json.dumps(own))
        noted = json.loads(path.read_text()) if path.exists() else own
        known = {name: own[name] for name in noted.keys() & own.keys()}
        known['nets'] = {net: own['nets'].get(net) for net in noted['nets']}
        if known != noted:
            raise UserError(f'{self.output} holds runs of another recipe: give another --output, or remove it')
        write_files({path: json.dumps(own, indent=1).encode() + b'\n'})

    def data_sets(self) -> list[str]:
        """The data sets that can be opened; the shapes are drawn if they were not."""
        self.open_data('shapes')
        if self.source.is_dir():
            return list(CLASSES)
        tqdm.write(f'no folder {self.source}: Fashion-MNIST is left out (--source)', file=sys.stderr)
        return ['shapes']

    def open_data(self, data: str) -> tuple[ScaledObjects, ScaledObjects]:
        """Training pictures, flipped half the time, and test pictures."""
        if data == 'shapes':
            read = partial(shapes, self.output, workers=available_cores())
        else:
            read = partial(jittered_photos, self.source)
        counts, place = {'train': self.recipe.train, 'val': self.recipe.test}, list(CLASSES).index(data)
        train, test = (read(seed=DATA_SEED, part=part, count=count[place]) for part, count in counts.items())
        return replace(train, transform=RandomHorizontalFlip()), test

    def test_loader(self, test: ScaledObjects, compute: Compute) -> DeviceLoader:
        """Test pictures in their order, as many at once as fit four training batches."""
        return DeviceLoader(test, EvalBatchSampler([range(len(test))], 4 * self.recipe.batch_size), compute, 0)

    def carry_out(self, data: str, net: str, seed: int) -> None:
        """Train a net by the recipe, as classify.py would, from its last checkpoint on; test it once, and note that."""
        torch.set_num_threads(1)
        start, folder, (train, test) = time.perf_counter(), self.folder(data, net, seed), self.open_data(data)
        recipe, epochs = self.recipe, self.recipe.epochs(len(train))
        words = f'--auto-resume -b {recipe.batch_size} -g 1 -j 0 -p 100 --epochs {epochs} --seed {seed}'.split()
        own = classify.make_parser().parse_args(['', *words, '--output', str(folder), '--device', self.device])
        own.batch_per_gpu = True  # one GPU
        own.arch, own.lr, own.momentum, own.weight_decay = net, recipe.lr, recipe.momentum, recipe.weight_decay  # noted
        torch.manual_seed(seed)
        meta, model = CheckpointMeta('miniature', net, train.classes), build(net, len(train.classes))
        trainer = Trainer(own, meta, CheckpointNames(LAST), model, loss_of_label, partial(ToolReporter, folder.name))
        optimizer = SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=trainer.on_gpu
        )
        schedule = partial(milestones, recipe.lr, at=[part * epochs for part in recipe.drops])
        trainer.fit(optimizer, schedule, train, ScaleError)
        compute = trainer.compute
        loader, errors = self.test_loader(test, compute), ScaleError(compute.device)
        with SignalHandler() as stop:
            errors = evaluate(Evaluator(model, compute), loss_of_label, loader, errors, trainer.reporter, stop)
        seconds = round(time.perf_counter() - start, 1)  # of an interrupted run only since it went on
        facts = {'seconds': seconds, 'device': str(compute), 'torch': torch.__version__}
        found = {'data': data, 'net': net, 'seed': seed, **errors, **facts}
        write_files({self.noted(data, net, seed): json.dumps(found).encode() + b'\n'})
        if net != 'elastic':  # whose scale policies are looked at
            (folder / LAST).unlink()


def loss_of_label(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits N x C and targets N x 2 (label, third)."""
    return cross_entropy(outputs, targets[:, 0])


def build(net: str, num_classes: int) -> nn.Module:
    """One of the shallow NETS."""
    if net in RESNEXTS:
        return ResNeXt(num_classes=num_classes, cardinality=CARDINALITY, **RESNEXTS[net])
    make = partial(RegNet, BlockParams(**REGNET))
    return libraries.build(make, elastic=net == 'regnety-elastic', num_classes=num_classes)


def costs(num_classes: int) -> dict[str, tuple[int, int]]:
    """Of each net, parameters and multiply-accumulates for one picture."""
    nets = {net: build(net, num_classes) for net in NETS}
    return {net: (count_parameters(model), count_macs(model, SIDE)) for net, model in nets.items()}
