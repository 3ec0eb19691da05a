"""Intersection over union against plain NumPy and scikit-learn."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix, jaccard_score

from utils.confusion import ConfusionMatrix

NAMES = [f'class {c}' for c in range(21)]


def random_masks(seed, absent=()):
    """Four pairs of predicted and true masks, a tenth of the truth ignored, some classes in neither."""
    random = np.random.RandomState(seed)
    known = [c for c in range(21) if c not in absent]
    predicted, truth = random.choice(known, (4, 30, 40)), random.choice(known, (4, 30, 40))
    truth[random.rand(4, 30, 40) < 0.1] = 255
    return predicted, truth


def measured(predicted, truth):
    matrix = ConfusionMatrix(torch.device('cpu'), NAMES)
    for one, other in zip(predicted, truth, strict=True):
        matrix.update(torch.tensor(one), torch.tensor(other, dtype=torch.uint8))
    return matrix


@pytest.mark.parametrize('absent', [(), (3, 20)])
def test_counts_and_iou_equal_numpy_and_scikit_learn(absent):
    predicted, truth = random_masks(0, absent)
    matrix, counted = measured(predicted, truth), truth != 255
    plain = np.zeros((21, 21), int)
    np.add.at(plain, (truth[counted], predicted[counted]), 1)
    assert matrix.counts.tolist() == plain.tolist()
    assert plain.tolist() == confusion_matrix(truth[counted], predicted[counted], labels=range(21)).tolist()
    each = 100 * jaccard_score(truth[counted], predicted[counted], labels=range(21), average=None, zero_division=0)
    result = matrix.compute()
    assert list(result['iou'].values()) == pytest.approx(each)
    assert result['miou'] == pytest.approx(each.mean())
    assert result['present'] == 21 - len(absent)
    assert result['miou_present'] == pytest.approx(each.sum() / (21 - len(absent)))


def test_class_that_is_only_predicted_is_not_present():
    truth = np.array([[[0, 0, 1, 255]]])
    result = measured(np.array([[[0, 2, 1, 3]]]), truth).compute()
    assert (result['present'], result['miou_present']) == (2, 75)
    assert (result['iou']['class 0'], result['iou']['class 2'], result['miou']) == (50, 0, pytest.approx(150 / 21))


def test_truth_as_prediction_scores_100():
    _, truth = random_masks(1)
    result = measured(np.where(truth == 255, 0, truth), truth).compute()
    assert result['miou'] == result['miou_present'] == 100
