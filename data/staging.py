"""Folders and files that appear whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from utils.errors import UserError


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
