"""Errors a user can mend: shown as one line, without a traceback."""

import re
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

# What torch's C++ adds to the text of an error: where it was raised, and a line per frame of the stack.
CPP_STACK = re.compile(r'^(Exception raised from|frame #\d+:|C\+\+ CapturedTraceback).*', re.MULTILINE)

# What torch says where a tensor finds no memory: that of a GPU, or the machine's.
OUT_OF_MEMORY = re.compile(r"(?:out of memory|can't allocate memory).*?allocate ([\d.]+ \w+)", re.DOTALL)


class UserError(Exception):
    """Something the user can mend; its text says what is wrong and where, in one line."""

    def __init__(self, text: str):
        super().__init__(CPP_STACK.sub('', text))


def exit_cleanly(main: Callable[[], None]) -> None:
    """Call `main`; a UserError ends the process with `error: ...` on stderr and exit status 1, Ctrl-C with 130.

    So do an OSError, as of a folder that may not be looked into, which tells what it is about, and a lack of memory.
    """
    if hasattr(sys.stdout, 'reconfigure'):  # names of files need not be UTF-8
        sys.stdout.reconfigure(errors='backslashreplace')
    try:
        main()
    except (UserError, OSError) as error:
        tell(error)
        raise SystemExit(1) from None
    except RuntimeError as error:
        found = OUT_OF_MEMORY.search(str(error))
        if not found:
            raise
        tell(f'out of memory, as {found[1]} more were needed: smaller batches or images, or --amp bf16, take less')
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def tell(error: Exception | str) -> None:
    """Print it on one line of stderr."""
    print('error:', ' '.join(str(error).split()), file=sys.stderr)


@contextmanager
def reading(message: str) -> Iterator[None]:
    """Within, whatever a library raises over the bytes of a file is a UserError that begins with `message`.

    What damaged bytes make libraries raise has no bounds: struct.error, IndexError, MemoryError. Their warnings are not
    shown: of a readable file they tell nothing that matters here, and of another one the error tells.
    """
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        try:
            yield
        except (UserError, torch.OutOfMemoryError):  # the latter of a GPU: the file can do nothing for it
            raise
        except Exception as error:
            text = str(error)
            text = text if ' ' in text else f'{type(error).__name__} {text}'  # a KeyError's is only the key
            raise UserError(f'{message}: {text}') from error


def named(names, most: int = 5) -> str:
    """The first `most` of `names`, and how many more there are."""
    names = list(names)
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(str, names[:most])) + rest
