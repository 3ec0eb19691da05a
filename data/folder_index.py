"""Which pictures FOLDER/CLASS/... holds: listed once, then known from a file in the user's cache folder.

Classes, pictures, labels and order are those of torchvision's ImageFolder. Names are kept in arrays, not in a list of
strings: an index of ImageNet loads in a fraction of a second, and forked workers share it, where looking at strings
would copy them, reference count by reference count.
"""

import hashlib
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.errors import UserError, named

# Files from which on an index is kept. Listing so many takes 20 ms from memory and less than a second from a disk.
SMALLEST = 10_000
# A folder changed less than this before it was read is read again next time: by the coarsest clock of a file system
# (2 s, FAT's) a later change could bear the same time.
UNSETTLED_SECONDS = 3
UNKNOWN = 0, 0, 0, 0  # no folder's state
FORMAT = b'elastic folder index 1 ' + ' '.join(IMG_EXTENSIONS).encode()

State = tuple[int, int, int, int]


@dataclass(frozen=True)
class ClassFiles:
    """The pictures below a class folder, and the folders they are spread over: its own, '', and those within."""

    names: bytes  # paths of the pictures from the class folder on, sorted, each ended by a NUL
    folders: dict[str, State]

    def __len__(self) -> int:
        return self.names.count(0)


class FolderIndex:
    """Path and label of each picture of a folder with a folder per class."""

    def __init__(self, folder: str, files: dict[str, ClassFiles]):
        self.folder, self.classes = folder, list(files)
        self.names = np.frombuffer(b''.join(part.names for part in files.values()), np.uint8)
        self.ends = np.flatnonzero(self.names == 0)
        self.firsts = np.cumsum([0, *map(len, files.values())])

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> tuple[str, int]:
        index = range(len(self))[index]  # IndexError ends a loop over a dataset
        label = int(np.searchsorted(self.firsts, index, side='right')) - 1
        start = self.ends[index - 1] + 1 if index else 0
        name = os.fsdecode(self.names[start : self.ends[index]].tobytes())
        return os.path.join(self.folder, self.classes[label], name), label

    def labels(self) -> np.ndarray:
        """The labels of all pictures."""
        return np.repeat(np.arange(len(self.classes)), np.diff(self.firsts))


def open_index(folder: Path) -> FolderIndex:
    """The index of `folder`, of which only classes that changed since the last time are listed.

    UserError if there is no class, a class holds no picture, or a folder cannot be read.
    """
    cache = cache_file(folder)
    kept = read_cache(cache, folder) if cache else {}
    files = {}
    for name in class_names(folder):
        path = os.path.join(folder, name)
        files[name] = kept[name] if name in kept and is_current(path, kept[name]) else read_class(path)
    empty = [name for name, part in files.items() if not len(part)]
    if empty:
        raise UserError(f'{folder}: no picture in class {named(empty)} (looked for {", ".join(IMG_EXTENSIONS)})')
    if cache and files != kept and sum(map(len, files.values())) >= SMALLEST:
        write_cache(cache, folder, files)
    return FolderIndex(str(folder), files)


def class_names(folder: Path) -> list[str]:
    """The folders in `folder`, sorted."""
    with scan(folder) as entries:
        names = sorted(entry.name for entry in entries if is_folder(entry))
    if not names:
        raise UserError(f'{folder}: holds no class folder')
    return names


def read_class(path: str) -> ClassFiles:
    """List a class folder and the folders in it."""
    found, folders, waiting = [], {}, ['']
    while waiting:
        place = waiting.pop()
        here = os.path.join(path, place) if place else path
        folders[place] = settled(here)  # before it is listed: a change in between is seen next time
        with scan(here) as entries:
            for entry in entries:
                if is_folder(entry):
                    waiting.append(os.path.join(place, entry.name))
                elif entry.name.lower().endswith(IMG_EXTENSIONS):
                    found.append((place, entry.name))
    names = ''.join(f'{os.path.join(*pair)}\0' for pair in sorted(found))
    return ClassFiles(os.fsencode(names), folders)


def is_current(path: str, files: ClassFiles) -> bool:
    """Whether no folder of a class has changed."""
    return all(state(os.path.join(path, place)) == noted for place, noted in files.folders.items())


def state(path: str) -> State:
    """What changes when an entry is added to a folder, removed or renamed, as far as one call tells.

    That is the time of the last change of its list of entries, which tools can set back; that of any change, which they
    cannot; the number of its folders; and its size, which on many file systems follows the number of entries. The
    entries themselves are not counted: that would be to list them, which is what takes long.
    """
    try:
        found = os.stat(path)
    except OSError:
        return UNKNOWN
    return found.st_mtime_ns, found.st_ctime_ns, found.st_nlink, found.st_size


def settled(path: str) -> State:
    """The folder's state; UNKNOWN, which it never has later, if it changed just now."""
    now, found = time.time_ns(), state(path)
    return UNKNOWN if max(found[:2]) > now - UNSETTLED_SECONDS * 10**9 else found


def scan(folder: str | Path) -> AbstractContextManager[Iterator[os.DirEntry]]:
    """os.scandir; UserError if the folder cannot be read, whose pictures torchvision would leave out in silence."""
    try:
        return os.scandir(folder)
    except OSError as error:
        raise UserError(f'cannot read folder {folder}: {error.strerror}') from error


def is_folder(entry: os.DirEntry) -> bool:
    """Whether it is a folder or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # links in a circle
        return False


def cache_file(folder: Path) -> Path | None:
    """Where the index of `folder` is kept; None for a user without a home."""
    base = os.environ.get('XDG_CACHE_HOME', '')
    if not os.path.isabs(base):  # to be ignored, says the standard
        base = os.path.expanduser('~/.cache')
    key = hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]
    return Path(base, 'elastic', f'folder-{key}.npz') if os.path.isabs(base) else None


def read_cache(cache: Path, folder: Path) -> dict[str, ClassFiles]:
    """The classes noted there, current or not; none if there is no such file, or it is damaged or of something else."""
    try:
        with np.load(cache, allow_pickle=False) as file:
            if file['format'].tobytes() != FORMAT or file['folder'].tobytes() != os.fsencode(folder.resolve()):
                return {}
            return unpacked(file)
    except Exception:  # whatever a damaged file makes NumPy or zipfile raise: the folder is listed instead
        return {}


def unpacked(file: np.lib.npyio.NpzFile) -> dict[str, ClassFiles]:
    """What write_cache has packed."""
    names, states = file['names'].tobytes(), list(map(tuple, file['states'].tolist()))
    classes, places = (split(file[key]) for key in ('classes', 'places'))
    files, byte, row = {}, 0, 0
    for name, length, rows in zip(classes, *file['sizes'].T.tolist(), strict=True):
        folders = dict(zip(places[row : row + rows], states[row : row + rows], strict=True))
        files[name] = ClassFiles(names[byte : byte + length], folders)
        byte, row = byte + length, row + rows
    return files


def write_cache(cache: Path, folder: Path, files: dict[str, ClassFiles]) -> None:
    """Keep the index, whole or not at all; nothing happens where the user must not write or the disk is full."""
    content = {
        'format': np.frombuffer(FORMAT, np.uint8),
        'folder': np.frombuffer(os.fsencode(folder.resolve()), np.uint8),
        'classes': joined(files),
        'sizes': np.array([(len(part.names), len(part.folders)) for part in files.values()]),
        'places': joined(place for part in files.values() for place in part.folders),
        'states': np.array([found for part in files.values() for found in part.folders.values()]),
        'names': np.frombuffer(b''.join(part.names for part in files.values()), np.uint8),
    }
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix='.new-', dir=cache.parent) as scratch:
            np.savez(Path(scratch, cache.name), **content)  # its checksums show what a power cut left half-written
            os.replace(Path(scratch, cache.name), cache)


def joined(names: Iterable[str]) -> np.ndarray:
    """Names as bytes, each ended by a NUL."""
    return np.frombuffer(os.fsencode(''.join(f'{name}\0' for name in names)), np.uint8)


def split(names: np.ndarray) -> list[str]:
    """The names that were joined."""
    return os.fsdecode(names.tobytes()).split('\0')[:-1]
