"""The scripts train as the reference's did, whose own loops are recorded in tests/golden/golden_training.json.gz."""

import pytest
import torch

from tests.reference import assert_equal, load
from tools.check_gpu.numbers import training_again

CASES = load('golden_training')['cases']
QUICK = 'classify/dla60x/g1', 'docker_classify/resnext50_elastic', 'multilabel/dla60x', 'segment/resnext50_elastic'


@pytest.mark.parametrize('name', [pytest.param(n, marks=[] if n in QUICK else pytest.mark.slow) for n in CASES])
def test_training_is_the_references(name):
    assert_equal(training_again(torch.device('cpu'), name))
