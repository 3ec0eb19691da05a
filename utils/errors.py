"""Errors a user can mend: shown as one line, without a traceback."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """Something the user can mend; its text says what is wrong and where, in one line."""


def exit_cleanly(main: Callable[[], None]) -> None:
    """Call `main`; a UserError ends the process with `error: ...` on stderr and exit status 1, Ctrl-C with 130."""
    try:
        main()
    except UserError as error:
        tell(error)
        raise SystemExit(1) from None
    except KeyboardInterrupt:
        raise SystemExit(130) from None


def tell(error: UserError) -> None:
    """Print it on one line of stderr."""
    print('error:', ' '.join(str(error).split()), file=sys.stderr)


def named(names, most: int = 5) -> str:
    """The first `most` of `names`, and how many more there are."""
    names = list(names)
    rest = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(map(str, names[:most])) + rest
