"""Files of safetensors: what tools/import_weights.py says where they are damaged, or their package is missing."""

import sys

import pytest
import torch
from safetensors.torch import save_file

from tools.import_weights import read_weights
from utils.errors import UserError


@pytest.fixture
def path(tmp_path):
    save_file({'a': torch.arange(12.0).view(3, 4), 'b': torch.tensor(5)}, tmp_path / 'model.safetensors')
    return tmp_path / 'model.safetensors'


def test_tensors_are_read_by_name_and_a_missing_package_is_named(path, monkeypatch):
    read = read_weights(path)
    assert read['a'].tolist() == torch.arange(12.0).view(3, 4).tolist() and read['b'] == 5
    monkeypatch.setitem(sys.modules, 'safetensors.torch', None)
    with pytest.raises(UserError, match='model.safetensors: to read it needs pip install safetensors'):
        read_weights(path)


@pytest.mark.parametrize(
    'damage',
    [
        lambda content: content[:-4],  # a whole number less
        lambda content: b'',
        lambda content: b'<html>404</html>',
        lambda content: (2).to_bytes(8, 'little') + b'[]',
        lambda content: content.replace(b'"F32"', b'"X32"'),
    ],
)
def test_damaged_file_is_named(path, damage):
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(UserError, match=f'cannot read {path}: '):
        read_weights(path)
