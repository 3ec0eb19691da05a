"""Tasks that each leave a file, side by side in processes of their own."""

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any

from utils.errors import UserError, exit_cleanly
from utils.signals import SignalHandler, end_with_parent


def side_by_side(tasks: Mapping[Path, Callable[[], None]], count: int) -> list[dict[str, Any]]:
    """Do the tasks whose JSON file is not there, `count` of them at a time; what all files then hold, in their order.

    One at a time they are done in this process. After a signal, and when one fails, those that run get SIGTERM and are
    waited for. Raises Stopped, and UserError that names the file that was not made.
    """
    missing = {path: task for path, task in tasks.items() if not path.exists()}
    if count == 1:
        for task in missing.values():
            task()
    else:
        in_processes(missing, count)
    return [json.loads(path.read_text()) for path in tasks]


def in_processes(waiting: dict[Path, Callable[[], None]], count: int) -> None:
    """Do the tasks, taken from `waiting` in its order, each in a process."""
    spawn, running = multiprocessing.get_context('spawn'), {}
    with SignalHandler() as stop:
        try:
            while waiting or running:
                for path in list(waiting)[: count - len(running)]:
                    process = spawn.Process(target=_apart, args=(waiting.pop(path),))
                    process.start()
                    running[path] = process
                wait([process.sentinel for process in running.values()], timeout=1)
                stop.check()
                for path, process in list(running.items()):
                    if process.exitcode:
                        raise UserError(f'{path} was not made: its process ended with status {process.exitcode}')
                    if process.exitcode == 0:
                        del running[path]
        finally:
            for process in running.values():
                process.terminate()
            for process in running.values():
                process.join()


def _apart(task: Callable[[], None]) -> None:
    os.setsid()  # a terminal's Ctrl-C is the parent's to pass on, once: a second signal would kill
    end_with_parent()
    exit_cleanly(task)
