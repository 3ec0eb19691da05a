"""The folder a run writes to: one run at a time, and no run over another's checkpoint."""

import fcntl
from pathlib import Path
from typing import IO

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


def refuse_overwriting(*checkpoints: Path) -> None:
    """UserError if a new run would write over checkpoints of an earlier one."""
    for path in checkpoints:
        if path.exists():
            raise UserError(f'{path} is of another run: go on with it (--auto-resume), or give another --output')
