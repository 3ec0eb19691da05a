"""Metrics over several processes equal one process's: two gloo processes meet in a file."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent

JOB = """
import sys, torch
from torch import distributed
from tests.test_distributed import whole_and_parts
rank, folder = int(sys.argv[1]), sys.argv[2]
distributed.init_process_group('gloo', init_method=f'file://{folder}/meet', rank=rank, world_size=2)
_, parts = whole_and_parts()
parts[rank].reduce()
torch.save(parts[rank].compute(), f'{folder}/{rank}')
"""


def whole_and_parts():
    """Metrics over 50 samples, and over the first 20 and the other 30 of them."""
    from tests.test_multilabel import measured, random_batch
    from utils.multilabel import MultiLabelScores

    logits, targets = random_batch(50, 6, decimals=1)
    halves = [(logits[:20], targets[:20]), (logits[20:], targets[20:])]
    return measured(MultiLabelScores, logits, targets), [measured(MultiLabelScores, *half) for half in halves]


def test_two_processes_measure_what_one_measures(tmp_path):
    jobs = [subprocess.Popen([sys.executable, '-c', JOB, str(rank), tmp_path], cwd=ROOT) for rank in range(2)]
    assert [job.wait(200) for job in jobs] == [0, 0]
    whole, (part, _) = whole_and_parts()
    expected = whole.compute()
    assert part.compute()['mAP'] != pytest.approx(expected['mAP'])
    for rank in range(2):
        result = torch.load(tmp_path / str(rank))
        rows, wanted = result.pop('classes'), expected['classes']
        assert result == pytest.approx({name: value for name, value in expected.items() if name != 'classes'})
        assert [row['positives'] for row in rows] == [row['positives'] for row in wanted]
        assert [row['ap'] for row in rows] == pytest.approx([row['ap'] for row in wanted])
