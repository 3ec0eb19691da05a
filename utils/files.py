"""What is written, and where: a run's folder, one run at a time; a tool's picture and numbers, whole or not at all."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from utils.errors import UserError


def lock(folder: Path) -> IO:
    """Make `folder` and take its lock, which ends with the process however it ends; UserError if another run has it.

    Keep the file that is returned: closing it gives the lock back.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / '.run.lock', 'a')  # noqa: SIM115 - open as long as the run
    except OSError as error:
        raise UserError(f'cannot write to --output {folder}: {error.strerror}') from error
    try:
        # POSIX locks belong to the process: forked data workers that outlive it for a moment do not hold them.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.close()
        raise UserError(f'{folder} is in use by another run; give this one another --output') from error
    return file


def check_results(picture: Path) -> None:
    """Make the folder for PICTURE.png and PICTURE.json; UserError if that fails or nothing can be written there."""
    for path in (picture, picture.with_suffix('.json')):
        check_writable(path)


def check_writable(path: Path) -> None:
    """Make the folder for a file; UserError, better before the work than after it, if the file cannot be written."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    if path.is_dir():
        raise UserError(f'cannot write {path}: it is a folder')


def write_results(figure: Figure, results: dict[str, Any], picture: Path) -> None:
    """Write PICTURE.png and, beside it, the numbers as PICTURE.json, both or neither; UserError if that fails."""
    drawn = BytesIO()
    rasterised(figure).save(drawn, format='PNG', optimize=True)
    numbers = json.dumps(results, default=str).encode() + b'\n'
    write_files({picture.with_suffix('.json'): numbers, picture: drawn.getvalue()})


def write_figure(figure: Figure, picture: Path, dots_per_inch: int) -> None:
    """Write a figure as PNG, whole or not at all; UserError if that fails."""
    drawn = BytesIO()
    figure.savefig(drawn, format='png', dpi=dots_per_inch)
    write_files({picture: drawn.getvalue()})


def write_files(contents: dict[Path, bytes]) -> None:
    """Write files, all or none, in place of those that are there; UserError if that fails."""
    temporary = {path: path.with_name(f'{path.name}.{os.getpid()}.tmp') for path in contents}
    try:
        for path, content in contents.items():
            temporary[path].write_bytes(content)
        for path in contents:
            os.replace(temporary[path], path)
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror}') from error
    finally:
        for path in temporary.values():
            with suppress(OSError):
                path.unlink(missing_ok=True)


def rasterised(figure: Figure) -> Image.Image:
    """A figure as an image of 256 colours, on disk a third of one of all colours."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())[..., :3])
    return image.quantize(palette=image.quantize(256, kmeans=2))  # only with a palette given does Pillow dither


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """A new folder to fill, beside `out`; it becomes `out` when the block ends without an error, else it is removed.

    UserError if `out` exists already or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f'{out} exists already: name a new folder, or remove it first')
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as scratch:
            folder = Path(scratch) / 'folder'  # made by mkdir, so with everyday permissions
            folder.mkdir()
            yield folder
            folder.rename(out)
    except OSError as error:
        raise UserError(f'cannot write {out}: {error.strerror or error}') from error


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """A scratch folder to fill; when the block ends without an error its files move into `folder`, else they vanish.

    Each file replaces one of its name whole. UserError if `folder` cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix='.staged-', dir=folder) as scratch:
            yield Path(scratch)
            for file in sorted(Path(scratch).iterdir()):
                os.replace(file, folder / file.name)
    except OSError as error:
        raise UserError(f'cannot write to {folder}: {error.strerror or error}') from error
