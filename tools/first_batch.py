"""Load the first batch of a training as classify.py does, and tell when: what tools.benchmark --startup launches.

    python -m tools.first_batch DIR                  three moments: all imported, index ready, batch of 8 on the device
"""

import json
import sys
import time
from argparse import Namespace
from pathlib import Path

if not __package__:  # run as a file: the packages are in the folder above
    sys.path[0] = str(Path(__file__).resolve().parent.parent)

import classify
from utils.arguments import Parser
from utils.batches import TrainBatches
from utils.compute import Compute
from utils.data import DeviceLoader
from utils.errors import exit_cleanly
from utils.image_folder import open_train_and_val


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
    batches = TrainBatches(len(train), 8, seed=0, smallest=1)
    images, _ = next(iter(DeviceLoader(train, batches, Compute(settings.device), settings.workers)))
    images.sum().item()  # waits for a GPU
    print(json.dumps([*moments, time.monotonic()]))


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
