"""ImageNet classification with one process per GPU.

    python -m torch.distributed.run --nproc_per_node=8 docker_classify.py DIR                    one machine
    python -m torch.distributed.run --nnodes=2 --nproc_per_node=8 --rdzv_backend=c10d \\
        --rdzv_endpoint=HOST:29400 docker_classify.py DIR -g 16                                  on each of two machines
    python -m apex.parallel.multiproc docker_classify.py DIR                                     as in 2019

As classify.py, but --batch-size is that of a process, and the defaults are those of the reference's script. Each
process keeps its own running statistics and tests the whole set with them; the average is reported, and the first one's
model is saved (--average-bn: averaged before each test, which the processes then share).
"""

from argparse import Namespace

import classify
from utils.cli import Parser, positive_float
from utils.errors import exit_cleanly
from utils.logger import SpeedReporter


def make_parser() -> Parser:
    """Make the parser of the arguments, whose defaults are the recipe."""
    parser = classify.make_parser(__doc__, batch='samples per update of a process, one of --num-gpus')
    add = parser.add_argument_group('as in the reference').add_argument
    add('--fp16', dest='amp', action='store_const', const='fp16', default='off', help='the same as --amp fp16')
    add('--static-loss-scale', type=positive_float, metavar='X', help='of fp16; default: as large as it can be')
    parser.set_defaults(batch_size=32, workers=8, batch_per_gpu=True)
    return parser


def main(args: Namespace) -> dict[str, float] | None:
    """Train, or with --evaluate only test: its results."""
    return classify.main(args, last='checkpoint.pth.tar', reporter=SpeedReporter)


if __name__ == '__main__':
    exit_cleanly(lambda: main(make_parser().parse_args()))
