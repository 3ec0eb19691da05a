"""Folders that appear whole or not at all."""

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
