"""The paper's central comparison at a size that a laptop repeats: a base net and its Elastic one, several seeds each.

    python -m tools.miniature                                    two data sets, two nets, seeds 0, 1 and 2
    python -m tools.miniature --seeds 0,1,2,3,4 --device cuda    more seeds
    python -m tools.miniature --output runs/other                called again, it goes on where it was stopped

A shallow ResNeXt (1, 2, 3, 1) meets its Elastic form (2, 4, 2, 1): blocks doubled in the first two stages and one fewer
in the third, as (3, 4, 6, 3) becomes (6, 8, 5, 3) in the paper. The recipe below is the same for both, was tuned on the
base net alone and is fixed. Every net is tested once, after its last update. The table of errors goes to stdout and
into miniature.md, with miniature.png and all numbers in miniature.json beside it.
"""

import json
import sys
import time
from argparse import Namespace
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.optim import SGD
from torchvision.transforms import RandomHorizontalFlip
from tqdm import tqdm

import classify
from data.fashion_mnist import CLASSES as GARMENTS
from data.fashion_mnist import SOURCE
from data.scenes import CLASS_NAMES
from models.cost import count_macs, count_parameters
from models.resnext import ResNeXt
from tools.miniature.data import SIDE, ScaledObjects, jittered_photos, shapes
from tools.miniature.report import ScaleError, draw, table
from tools.results import ToolReporter, check_results, write_results
from utils.checkpoint import CheckpointMeta
from utils.cli import Parser, add_device_argument, random_seed
from utils.device import Compute
from utils.errors import UserError, exit_cleanly
from utils.files import check_writable, lock, write_files
from utils.loader import DeviceLoader, EvalBatchSampler, available_cores
from utils.run import Files
from utils.schedules import milestones
from utils.signals import SignalHandler
from utils.trainer import Evaluator, Trainer, evaluate

DEPTHS = {'base': (1, 2, 3, 1), 'elastic': (2, 4, 2, 1)}
CARDINALITY, BASE_WIDTH = 8, 4
CLASSES = {'shapes': len(CLASS_NAMES), 'photos': len(GARMENTS)}
DATA_SEED = 0  # of the pictures, the same for every net and seed
LAST = 'checkpoint.pth.tar'


@dataclass(frozen=True)
class Recipe:
    """How every net is trained; the training pictures fill a whole number of epochs."""

    updates: int = 1200  # under three minutes where 230 pictures are learned a second
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


def make_parser() -> Parser:
    parser = Parser(__doc__)
    add = parser.add_argument
    add('--seeds', type=seeds, default='0,1,2', metavar='N,N,...', help='of initial values, order and flips')
    add('--source', type=Path, default=SOURCE, metavar='DIR', help="folder of Fashion-MNIST's four .gz files")
    add('--output', type=Path, default=Path('runs/miniature'), metavar='DIR', help='for pictures, runs and results')
    add_device_argument(add)
    return parser


def main(args: Namespace) -> None:
    """Do the runs that are missing, the nets in turn for each seed; print, draw and note what came out."""
    picture, recipe, compute = args.output / 'miniature.png', RECIPE, Compute(args.device, all_gpus=False)
    check_results(picture)
    check_writable(picture.with_suffix('.md'))
    with lock(args.output), SignalHandler() as stop:
        keep_recipe(args.output / 'recipe.json', recipe)
        runs = Runs(args.output, recipe, args.device, stop)
        results = [
            runs.result(data, net, seed, *pictures)
            for data, pictures in open_data(args, recipe).items()
            for seed in args.seeds
            for net in DEPTHS
        ]
    report(results, recipe, compute, picture)


def keep_recipe(path: Path, recipe: Recipe) -> None:
    """Note the recipe of a folder's runs; UserError if those that are there had another."""
    text = json.dumps({'depths': DEPTHS, 'width': [CARDINALITY, BASE_WIDTH], **asdict(recipe)}, indent=1) + '\n'
    if path.exists() and path.read_text() != text:
        raise UserError(f'{path.parent} holds runs of another recipe: give another --output, or remove it')
    path.write_text(text)


def open_data(args: Namespace, recipe: Recipe) -> dict[str, tuple[ScaledObjects, ScaledObjects]]:
    """Training pictures, flipped half the time, and test pictures of every data set that is there."""
    sizes = {'train': recipe.train, 'val': recipe.test}
    found = {'shapes': [shapes(args.output, DATA_SEED, part, n, available_cores()) for part, (n, _) in sizes.items()]}
    if args.source.is_dir():
        found['photos'] = [jittered_photos(args.source, DATA_SEED, part, n) for part, (_, n) in sizes.items()]
    else:
        tqdm.write(f'no folder {args.source}: Fashion-MNIST is left out (--source)', file=sys.stderr)
    return {data: (replace(train, transform=RandomHorizontalFlip()), test) for data, (train, test) in found.items()}


@dataclass(frozen=True)
class Runs:
    """Where the runs are kept and what they share."""

    output: Path
    recipe: Recipe
    device: str
    stop: SignalHandler

    def result(self, data: str, net: str, seed: int, train: ScaledObjects, test: ScaledObjects) -> dict[str, Any]:
        """What a run came to: as its result.json says, else by doing the run, from its last checkpoint on."""
        folder = self.output / f'{data}_{net}_{seed}'
        noted = folder / 'result.json'
        if not noted.exists():
            start = time.perf_counter()
            errors = self.train_and_test(folder, net, seed, train, test)
            seconds = round(time.perf_counter() - start, 1)  # of an interrupted run only since it went on
            found = {'data': data, 'net': net, 'seed': seed, **errors, 'seconds': seconds}
            write_files({noted: json.dumps(found).encode() + b'\n'})
            (folder / LAST).unlink()
        return json.loads(noted.read_text())

    def train_and_test(
        self, folder: Path, net: str, seed: int, train: ScaledObjects, test: ScaledObjects
    ) -> dict[str, Any]:
        """Train a net by the recipe, as classify.py would, then test it once."""
        recipe, epochs = self.recipe, self.recipe.epochs(len(train))
        words = f'--auto-resume -b {recipe.batch_size} -g 1 -j 0 -p 100 --epochs {epochs} --seed {seed}'.split()
        own = classify.make_parser().parse_args(['', *words, '--output', str(folder), '--device', self.device])
        own.batch_per_gpu = True  # one GPU
        torch.manual_seed(seed)
        meta, model = CheckpointMeta('miniature', net, train.classes), build(net, len(train.classes))
        trainer = Trainer(own, meta, Files(LAST), model, loss_of_label, partial(ToolReporter, folder.name))
        optimizer = SGD(
            model.parameters(), recipe.lr, recipe.momentum, weight_decay=recipe.weight_decay, fused=trainer.on_gpu
        )
        schedule = partial(milestones, recipe.lr, at=[part * epochs for part in recipe.drops])
        trainer.fit(optimizer, schedule, train, ScaleError)
        compute, batches = trainer.compute, EvalBatchSampler([range(len(test))], 4 * recipe.batch_size)
        loader, errors = DeviceLoader(test, batches, compute, 0), ScaleError(compute.device)
        return evaluate(Evaluator(model, compute), loss_of_label, loader, errors, trainer.reporter, self.stop)


def loss_of_label(outputs: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of logits N x C and targets N x 2 (label, third)."""
    return cross_entropy(outputs, targets[:, 0])


def build(net: str, num_classes: int) -> ResNeXt:
    """The shallow net: `base` or `elastic`."""
    elastic = net == 'elastic'
    return ResNeXt(DEPTHS[net], num_classes, cardinality=CARDINALITY, base_width=BASE_WIDTH, elastic=elastic)


def costs(num_classes: int) -> dict[str, tuple[int, int]]:
    """Of each net, parameters and multiply-accumulates for one picture."""
    nets = {net: build(net, num_classes) for net in DEPTHS}
    return {net: (count_parameters(model), count_macs(model, SIDE)) for net, model in nets.items()}


def report(results: list[dict[str, Any]], recipe: Recipe, compute: Compute, picture: Path) -> None:
    """Print the table, and write it, the plot and the numbers."""
    cost = {data: costs(classes) for data, classes in CLASSES.items()}
    lines = table(results, cost)
    print(lines)
    write_files({picture.with_suffix('.md'): f'{lines}\n'.encode()})
    noted = {'recipe': asdict(recipe), 'depths': DEPTHS, 'costs': cost, 'device': str(compute)}
    noted |= {'threads': torch.get_num_threads(), 'torch': torch.__version__, 'results': results}
    write_results(draw(results), noted, picture)


def seeds(text: str) -> list[int]:
    """Different whole numbers from 0 on, separated by commas."""
    values = [random_seed(part) for part in text.split(',')]
    if len(set(values)) < len(values):
        raise ValueError(text)
    return values


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
