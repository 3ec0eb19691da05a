"""How long a run takes from its launch to its first batch, the folder's index made or found.

    python -m tools.benchmark.startup DIR            what is launched: the moments at which all is imported, the index
                                                     is ready, and a batch of 8 is on the device
"""

import json
import os
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib

import classify
from data.image_folder import open_train_and_val
from tools.benchmark.loaders import draw_pictures, link_pictures
from utils.cli import Parser
from utils.device import Compute
from utils.errors import UserError, exit_cleanly
from utils.loader import DeviceLoader, TrainBatchSampler

ROOT = Path(__file__).resolve().parent.parent.parent
PICTURES = 48  # which share the names of a made set: a file has at most 65,000 on ext4
MOST_VAL = 50  # images of a class for testing, as ImageNet has
STAGES = 'imports', 'index', 'first batch'  # whose ends `main` tells


@contextmanager
def made_set(classes: int, per_class: int) -> Iterator[tuple[str, dict[str, str]]]:
    """A folder of so many training images and, for it alone, the environment: nothing is left in the user's cache."""
    with TemporaryDirectory(prefix='startup-speed-') as scratch:
        pictures = draw_pictures(Path(scratch), PICTURES)
        for part, count in ('train', per_class), ('val', min(per_class, MOST_VAL)):
            link_pictures(pictures, Path(scratch, part), classes, count)
        # Matplotlib's list of fonts is found where it is.
        yield scratch, os.environ | {'XDG_CACHE_HOME': scratch, 'MPLCONFIGDIR': matplotlib.get_cachedir()}


def launch(folder: str | Path, environment: Mapping[str, str]) -> dict[str, float]:
    """The seconds a new process takes for each stage, by the clock that all processes share, and for all of them."""
    command = [sys.executable, '-m', 'tools.benchmark.startup', os.path.abspath(folder)]
    start = time.monotonic()
    ended = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if ended.returncode:
        raise UserError(ended.stderr.strip().removeprefix('error: '))
    moments = [start, *json.loads(ended.stdout)]
    seconds = [after - before for before, after in zip(moments[:-1], moments[1:], strict=True)]
    return dict(zip(STAGES, seconds, strict=True), total=sum(seconds))


def make_parser() -> Parser:
    parser = Parser(__doc__)
    parser.add_argument('data', metavar='DIR', help='with train and val')
    return parser


def main(args: Namespace) -> None:
    """Print the seconds of the monotonic clock, which all processes of a machine share."""
    settings = classify.make_parser().parse_args([args.data])
    moments = [time.monotonic()]
    train, _ = open_train_and_val(settings.data, settings.image_size)
    moments.append(time.monotonic())
    batches = TrainBatchSampler(len(train), 8, seed=0, smallest=1)
    images, _ = next(iter(DeviceLoader(train, batches, Compute(settings.device), settings.workers)))
    images.sum().item()  # waits for a GPU
    print(json.dumps([*moments, time.monotonic()]))


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
