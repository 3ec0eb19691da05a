"""Which pictures FOLDER/CLASS/... holds: listed once, then known from a file in the user's cache folder.

Classes, pictures, labels and order are those of torchvision's ImageFolder. Names are kept in arrays, not in a list of
strings: an index of ImageNet loads in a fraction of a second, and forked workers share it, where looking at strings
would copy them, reference count by reference count.
"""

import hashlib
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from torchvision.datasets.folder import IMG_EXTENSIONS

from utils.errors import UserError, named
from utils.files import written_whole

# Files from which on an index is kept. Listing so many takes 20 ms from memory and less than a second from a disk.
SMALLEST = 10_000
# A folder changed less than this before it was read is read again next time: by the coarsest clock of a file system
# (2 s, FAT's) a later change could bear the same time.
UNSETTLED_SECONDS = 3
UNKNOWN = 0, 0
FORMAT = b'elastic folder index 2 ' + ' '.join(IMG_EXTENSIONS).encode()


class ClassFiles(NamedTuple):
    """The pictures below a class folder, and when it was changed last."""

    names: bytes  # paths of the pictures from the class folder on, each ended by a NUL
    changed: tuple[int, int]  # UNKNOWN, too, of one that holds folders: what changes in those does not show in it


class FolderIndex:
    """Path and label of each picture of a folder with a folder per class."""

    def __init__(self, folder: str, files: dict[str, ClassFiles]):
        self.folder, self.classes = folder, list(files)
        self.names = np.frombuffer(b''.join(part.names for part in files.values()), np.uint8)
        self.ends = np.flatnonzero(self.names == 0)
        self.firsts = np.cumsum([0, *(part.names.count(0) for part in files.values())])

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
    """Make the index of `folder`: classes that hold folders or changed since the last time are listed, others known.

    Raises UserError if there is no class, a class holds no picture, or a folder cannot be read.
    """
    cache = cache_file(folder)
    kept = read_cache(cache, folder) if cache else {}
    _, classes, _ = next(os.walk(folder, onerror=refuse))
    files = {}
    for name in sorted(classes):
        path = os.path.join(folder, name)
        times = changed(path)  # before it is listed: a change in between is seen next time
        files[name] = kept[name] if name in kept and kept[name].changed == times else list_class(path, times)
    if not files:
        raise UserError(f'{folder}: holds no class folder')
    empty = [name for name, part in files.items() if not part.names]
    if empty:
        raise UserError(f'{folder}: no picture in class {named(empty)} (looked for {", ".join(IMG_EXTENSIONS)})')
    index, known = FolderIndex(str(folder), files), {n: part for n, part in files.items() if part.changed != UNKNOWN}
    if cache and known != kept and len(index) >= SMALLEST:
        write_cache(cache, folder, known)
    return index


def changed(path: str) -> tuple[int, int]:
    """When the list of a folder's entries was changed last, which tools can set back, and when anything of it was.

    UNKNOWN if that was just now, or the folder cannot be looked at.
    """
    with suppress(OSError):
        now, found = time.time_ns(), os.stat(path)
        times = found.st_mtime_ns, found.st_ctime_ns
        if max(times) <= now - UNSETTLED_SECONDS * 10**9:
            return times
    return UNKNOWN


def list_class(path: str, times: tuple[int, int]) -> ClassFiles:
    """List the pictures in a class folder, last changed at these times, and in the folders in it."""
    places, start = sorted(os.walk(path, onerror=refuse, followlinks=True)), len(os.path.join(path, ''))
    pictures = [
        os.path.join(place, name)[start:]
        for place, _, names in places
        for name in sorted(names)
        if name.lower().endswith(IMG_EXTENSIONS)
    ]
    return ClassFiles(os.fsencode(''.join(f'{name}\0' for name in pictures)), times if len(places) == 1 else UNKNOWN)


def refuse(error: OSError) -> NoReturn:
    """Raises UserError for a folder that cannot be read, whose pictures torchvision would leave out in silence."""
    raise UserError(f'cannot read folder {error.filename}: {error.strerror}') from error


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
            if file['about'].tobytes() != FORMAT + os.fsencode(folder.resolve()):
                return {}
            names = [part.tobytes() for part in np.split(file['names'], file['ends'][:-1])]
            files = map(ClassFiles, names, map(tuple, file['changed'].tolist()))
            return dict(zip(file['classes'].tolist(), files, strict=True))
    except Exception:  # whatever a damaged file makes NumPy or zipfile raise: the folder is listed instead
        return {}


def write_cache(cache: Path, folder: Path, files: dict[str, ClassFiles]) -> None:
    """Keep the index, whole or not at all; nothing happens where the user must not write or the disk is full."""
    names = [part.names for part in files.values()]
    content = {
        'about': np.frombuffer(FORMAT + os.fsencode(folder.resolve()), np.uint8),
        'classes': np.array(list(files)),
        'changed': np.array([part.changed for part in files.values()]),
        'names': np.frombuffer(b''.join(names), np.uint8),
        'ends': np.cumsum([len(part) for part in names]),
    }
    with suppress(UserError), written_whole(cache) as (file,), open(file, 'wb') as opened:
        np.savez(opened, **content)
