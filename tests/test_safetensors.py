"""Our reader of safetensors files against files that their own package wrote."""

import pytest
import torch
from safetensors.torch import save_file

from utils import safetensors_file
from utils.errors import UserError


def test_tensors_are_read_in_every_type(tmp_path):
    kinds = torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.int64, torch.int32
    state = {f'a.{n}': (9 * torch.randn(2, 3, n)).to(kind) for n, kind in enumerate(kinds, 1)}
    state['count'] = torch.tensor(7)
    save_file(state, tmp_path / 'model.safetensors', metadata={'format': 'pt'})
    read = safetensors_file.read(tmp_path / 'model.safetensors')
    assert read.keys() == state.keys()
    for name, value in read.items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0)  # the type, too


@pytest.mark.parametrize(
    'damage',
    [
        *(lambda whole, length=length: whole[:length] for length in (-1, -4, 40, 0)),  # 4 bytes are a number
        lambda whole: b'<html>404</html>',
        lambda whole: (2).to_bytes(8, 'little') + b'[]',
        lambda whole: whole.replace(b'"F32"', b'"X32"'),
    ],
)
def test_damaged_file_is_named(tmp_path, damage):
    path = tmp_path / 'model.safetensors'
    save_file({'a': torch.zeros(3, 4), 'b': torch.ones(5)}, path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match='model.safetensors: not a safetensors file, or a damaged one'):
        safetensors_file.read(path)
