"""What runs of the scripts on the small nets leave: names of checkpoints, their content, logs, forms of lines."""

import json

import torch

from utils import checkpoint

LAST = 'tiny_checkpoint.pth.tar'
LAST_OF_COCO = f'coco_{LAST}'
LAST_OF_VOC = 'deeplab_tiny_pascal_v3_mine_last.pth'
PAIR = r'\d+\.\d{3} \(\d+\.\d{3}\)'
MEASURED = rf'Loss \d+\.\d{{4}} \(\d+\.\d{{4}}\)\tErr@1 {PAIR}\tErr@5 {PAIR}'


def content(folder, name=LAST):
    """The tensors of a checkpoint, weights and momentum, by name."""
    found = checkpoint.read(folder / name)
    momentum = {f'momentum {key}': value['momentum_buffer'] for key, value in found.optimizer['state'].items()}
    return {**found.state_dict, **momentum}


def assert_same(left, right):
    """Bit for bit the same tensors."""
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def epochs(folder):
    """The records of a run's log."""
    return [json.loads(line) for line in (folder / 'log.jsonl').read_text().splitlines()]
