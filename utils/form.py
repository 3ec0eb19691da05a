"""The form of what comes from a file, as data, and the one function that compares a value with it.

    Kind          what `fits` says
    {'step': f}   a dict that has this name at least, its value of form f
    {str: f}      a dict with names of that type only, each value of form f
    [f]           a list, each item of form f
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Kind:
    """What a single value must be."""

    words: str
    fits: Callable[[Any], bool]


Form = Kind | dict | list


def fault(value: Any, form: Form, name: str) -> str:
    """In what `value`, called `name`, is not of the form, in words; empty if in nothing."""
    return next(_faults(value, form, name), '')


def _faults(value: Any, form: Form, name: str) -> Iterator[str]:
    if isinstance(form, Kind):
        if not form.fits(value):
            yield f'{name} is {shown(value)}, not {form.words}'
    elif not isinstance(value, list | tuple if isinstance(form, list) else Mapping):
        yield f'{name} is {shown(value)}, not a {type(form).__name__}'
    elif isinstance(form, list):
        for place, item in enumerate(value):
            yield from _faults(item, form[0], f'{name}[{place}]')
    else:
        missing = [key for key in form if not isinstance(key, type) and key not in value]
        if missing:
            yield f'{name} has no {", ".join(missing)}'
        for key, inner in form.items():
            for own in value if isinstance(key, type) else [key]:
                if isinstance(key, type) and not isinstance(own, key):
                    yield f'{name} has the name {shown(own)}'
                yield from _faults(value[own], inner, f'{name}.{own}')


def leaves(value: Any, name: str = '') -> Iterator[tuple[str, Any]]:
    """All that is within dicts and lists, however deep, once each, called by the way to it."""
    waiting, seen = [(name, value)], set()
    while waiting:
        name, value = waiting.pop()
        if not isinstance(value, Mapping | list | tuple):
            yield name, value
        elif id(value) not in seen:  # a pickle's list may hold itself
            seen.add(id(value))
            pairs = value.items() if isinstance(value, Mapping) else enumerate(value)
            waiting += [(f'{name}.{key}', item) for key, item in pairs]


def shown(value: Any) -> str:
    """A short value as it is written, of another one the type."""
    is_short = value is None or isinstance(value, str | float) or NUMBER.fits(value)
    return f'{value!r:.40}' if is_short else f'a {type(value).__name__}'


def plain(value: Any) -> Any:
    """The number in one of NumPy's or a tensor of one element; anything else as it is."""
    is_wrapped = isinstance(value, np.generic) or isinstance(value, Tensor) and value.numel() == 1 and not value.is_meta
    return value.item() if is_wrapped else value


def _is_number(value: Any) -> bool:
    value = plain(value)
    return isinstance(value, Real) and abs(value) < 1e300  # NaN is not, and whole numbers have no largest


NUMBER = Kind('a finite number', _is_number)
COUNT = Kind('a whole number from 0 on', lambda value: isinstance(value, Integral) and 0 <= value < 2**63)
NAME = Kind('a name', lambda value: isinstance(value, str))
TENSOR = Kind('a tensor', lambda value: isinstance(value, Tensor))
ANYTHING = Kind('anything', lambda value: True)
