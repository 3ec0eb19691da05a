"""Write files and folders whole or not at all; keep a folder to one run at a time."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile
from typing import IO, Any

from utils.errors import UserError, named

Figure = Any  # matplotlib's, which torch.hub's nets do without


def lock(folder: Path) -> IO:
    """Make `folder` and take its lock, which ends with the process however it ends; UserError if another run has it.

    Keep the file that is returned: closing it gives the lock back. Windows has no such locks: there nobody is refused.
    """
    with writing(f'to --output {folder}'):
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / '.run.lock', 'a')  # noqa: SIM115 - open as long as the run
    try:
        import fcntl  # here, because scripts shall also start where there is none

        # POSIX locks belong to the process: forked data workers that outlive it for a moment do not hold them. They
        # would hold those of filelock, by flock(2), up to its version 3.20 at least.
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except ImportError:
        pass
    except OSError as error:
        file.close()
        taken = isinstance(error, BlockingIOError | PermissionError)
        fault = 'is in use by another run; give this one another --output' if taken else f'cannot be locked: {error}'
        raise UserError(f'{folder} {fault}') from error
    return file


@contextmanager
def writing(path: object) -> Iterator[None]:
    """Turn an OSError within into a UserError: cannot write `path`."""
    try:
        yield
    except OSError as error:
        raise UserError(f'cannot write {path}: {error.strerror or error}') from error


@contextmanager
def written_whole(*paths: Path, sync: bool = True) -> Iterator[list[Path]]:
    """Yield a path beside each of `paths` to write to; those written take their places, in order, when the block ends.

    A process killed at any instant leaves each file old or new, whole; so does a power cut, unless `sync` is off, which
    spares the disk some milliseconds a file. An error leaves the old files. Makes folders that are missing. Raises
    UserError if a file cannot be written.
    """
    temporary = [path.with_name(f'{path.name}.{os.getpid()}.tmp') for path in paths]
    try:
        with writing(named(paths, 1)):
            for folder in {path.parent for path in paths}:
                folder.mkdir(parents=True, exist_ok=True)
            yield temporary
        written = [(file, path) for file, path in zip(temporary, paths, strict=True) if file.exists()]
        for file, path in written if sync else ():
            with writing(path):
                _sync(file)
        for file, path in written:
            with writing(path):
                os.replace(file, path)
                if sync and os.name == 'posix':  # folders cannot be opened elsewhere
                    _sync(path.parent)
    finally:
        for file in temporary:
            with suppress(OSError):
                file.unlink(missing_ok=True)


def remove_leftovers(folder: Path, are_own: Callable[[str], bool]) -> None:
    """Remove files of our own names that a process killed in `written_whole` left; nobody may be writing them."""
    for path in folder.glob('*.tmp'):
        name, _, _ = path.name.removesuffix('.tmp').rpartition('.')  # between them the process's number
        if are_own(name):
            path.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    """Have the disk hold a file's content, or a folder's list of entries."""
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def staged_folder(out: Path) -> Iterator[Path]:
    """Yield a new folder beside `out`, which becomes `out` when the block ends without an error, else is removed.

    Raises UserError if `out` exists already or cannot be written.
    """
    if out.exists() or out.is_symlink():
        raise UserError(f'{out} exists already: name a new folder, or remove it first')
    with writing(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f'.{out.name}-', dir=out.parent) as scratch:
            folder = Path(scratch) / 'folder'  # made by mkdir, so with everyday permissions
            folder.mkdir()
            yield folder
            folder.rename(out)


def check_writable(*paths: Path) -> None:
    """Make the folders for files; UserError, better before the work than after it, if one cannot be written."""
    for path in paths:
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with TemporaryFile(dir=path.parent):
                pass
        if path.is_dir():
            raise UserError(f'cannot write {path}: it is a folder')


def write_files(contents: dict[Path, bytes]) -> None:
    """Write files, all or none, in place of those that are there; UserError if that fails."""
    with written_whole(*contents) as files:
        for file, (path, content) in zip(files, contents.items(), strict=True):
            with writing(path):
                file.write_bytes(content)


def write_figure(figure: Figure, picture: Path, dots_per_inch: int) -> None:
    """Write a figure as PNG, whole or not at all; UserError if that fails."""
    file = BytesIO()
    figure.savefig(file, format='png', dpi=dots_per_inch)
    write_files({picture: file.getvalue()})
