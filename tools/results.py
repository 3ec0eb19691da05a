"""What tools leave: a picture with its numbers beside it, and how they say what goes on."""

import json
import sys
from io import BytesIO
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image
from tqdm import tqdm

from utils.cli import Parser, file_type
from utils.files import check_writable, write_files
from utils.logger import Reporter
from utils.metrics import Clock, Metrics


def add_out_argument(parser: Parser, default: str) -> None:
    """The picture that a tool writes, and with it its numbers."""
    parser.add_argument('-o', '--out', type=file_type('.png'), default=Path(default), metavar='FILE.png',
        help='picture; numbers go to FILE.json')  # fmt: skip


def check_results(picture: Path) -> None:
    """Make the folder for PICTURE.png and PICTURE.json; UserError if that fails or nothing can be written there."""
    check_writable(picture, picture.with_suffix('.json'))


def write_results(figure: Figure, results: dict[str, Any], picture: Path) -> None:
    """Write PICTURE.png and, beside it, the numbers as PICTURE.json, both or neither; UserError if that fails."""
    numbers, drawn, file = json.dumps(results, default=str).encode() + b'\n', BytesIO(), BytesIO()
    figure.savefig(drawn, format='png', dpi=figure.dpi)
    image = Image.open(drawn).convert('RGB')
    reduced = image.quantize(palette=image.quantize(256, kmeans=2))  # only with a palette given does Pillow dither
    reduced.save(file, format='PNG', optimize=True)  # a third of one of all colors
    write_files({picture.with_suffix('.json'): numbers, picture: file.getvalue()})


class ToolReporter(Reporter):
    """Says on stderr, since stdout is a tool's table's, how the run or test of this label goes; of tests, the end."""

    def __init__(self, label: str, every: int = 1, images: int = 0):
        super().__init__(every, images)
        self.label = label

    def say(self, line: str) -> None:
        """Print a line, above the bar if there is one."""
        tqdm.write(f'{self.label}: {line}', file=sys.stderr)

    def test_line(self, step: int, steps: int, clock: Clock, metrics: Metrics) -> None:
        """Say nothing before a test's end."""
