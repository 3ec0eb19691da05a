"""Reading .safetensors files, in which timm publishes weights: a JSON header and raw numbers, nothing to execute.

    8 bytes                  length of the header, little-endian
    header                   {name: {"dtype": "F32", "shape": [64, 3, 7, 7], "data_offsets": [begin, end]}, ...}
    numbers                  offsets count from here

The format is small enough that its own package need not be a requirement.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from utils.errors import UserError

DTYPES = {
    'F64': torch.float64,
    'F32': torch.float32,
    'F16': torch.float16,
    'BF16': torch.bfloat16,
    'I64': torch.int64,
    'I32': torch.int32,
}


def read(path: Path) -> dict[str, Tensor]:
    """All tensors by name; UserError for a file that is missing, damaged or of another kind."""
    try:
        return dict(_tensors(bytearray(path.read_bytes())))
    except OSError as error:
        raise UserError(f'cannot read {path}: {error.strerror}') from error
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise UserError(f'{path}: not a safetensors file, or a damaged one') from error


def _tensors(content: bytearray) -> Iterator[tuple[str, Tensor]]:
    start = 8 + int.from_bytes(content[:8], 'little')
    header = json.loads(content[8:start])
    header.pop('__metadata__', None)
    for name, entry in header.items():
        begin, end = entry['data_offsets']
        numbers = content[start + begin : start + end]  # a slice of a cut-off file is too short for its shape
        yield name, torch.frombuffer(numbers, dtype=DTYPES[entry['dtype']]).reshape(entry['shape'])
