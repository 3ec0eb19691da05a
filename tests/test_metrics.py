"""What the tasks count, and the losses they train with, against scikit-learn and plain formulas."""

import json

import numpy as np
import pytest
import torch
from sklearn import metrics as theirs
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy, nll_loss

from utils.metrics import TopKError
from utils.multilabel import NAMES, MultiLabelCounts, MultiLabelScores, multilabel_loss
from utils.segmentation import IGNORED, ConfusionMatrix, Target, segmentation_loss

CPU = torch.device('cpu')


@pytest.mark.parametrize('classes', [9, 4])
def test_errors_of_classification(classes):
    """Of few classes the right one is always among the first five."""
    generator = torch.Generator().manual_seed(0)
    outputs, targets = torch.randn(50, classes, generator=generator), torch.arange(50) % classes
    metrics = TopKError(CPU)
    for part in slice(0, 32), slice(32, 50):
        metrics.update(cross_entropy(outputs[part], targets[part]), outputs[part], targets[part])
    err1, err5 = (100 - 100 * theirs.top_k_accuracy_score(targets, outputs, k=k) for k in (1, min(5, classes)))
    loss = theirs.log_loss(targets, outputs.double().softmax(1))
    assert metrics.compute() == pytest.approx({'loss': loss, 'err1': err1, 'err5': err5}, rel=1e-6)


# Multi-label


def random_batch(samples, classes, decimals=3):
    """Logits N x C and booleans N x 3 x C; class 0 is never predicted, class 1 never present."""
    random = np.random.RandomState(0)
    logits, targets = random.standard_normal((samples, classes)).round(decimals), random.rand(samples, 3, classes) < 0.2
    logits[:, 0], targets[:, :, 1] = -1, False
    return torch.tensor(logits), torch.tensor(targets)


def measured(kind, logits, targets):
    """After three batches of different sizes."""
    metrics = kind(CPU, [f'class {c}' for c in range(logits.shape[1])])
    for part in torch.arange(len(logits)).split([20, 15, len(logits) - 35]):
        metrics.update(multilabel_loss(logits[part], targets[part]), logits[part], targets[part])
    return metrics


@pytest.mark.parametrize('kind', [MultiLabelCounts, MultiLabelScores])
@pytest.mark.parametrize('shift', [0, 100])  # 100: nothing is predicted, and all is zero
def test_precision_recall_and_f(kind, shift):
    logits, targets = random_batch(40, 7)
    results, labels = measured(kind, logits - shift, targets).compute(), targets.any(1)
    expected = []
    for average in 'macro', 'micro':
        found = theirs.precision_recall_fscore_support(labels, logits > shift, average=average, zero_division=0)
        expected += [100 * value for value in found[:3]]
    assert [results[name] for name in NAMES] == pytest.approx(expected, abs=1e-9)
    loss = binary_cross_entropy_with_logits(logits - shift, labels.double(), reduction='sum') / 40
    assert results['loss'] == pytest.approx(loss.item())


@pytest.mark.parametrize('decimals', [3, 1, 0])  # of the scores: the fewer, the more are equal
def test_table_of_classes_their_mean_and_recall_by_size(decimals):
    """The mean leaves absent classes out and counts them; a size of a class in an image counts as an object."""
    logits, targets = random_batch(60, 5, decimals)
    metrics = measured(MultiLabelScores, logits, targets)
    metrics.reduce()
    result, labels = metrics.compute(), targets.any(1)
    each = [100 * theirs.average_precision_score(labels[:, c], logits[:, c]) for c in (0, 2, 3, 4)]
    assert result['mAP'] == pytest.approx(np.mean(each))
    assert result['classes_without_positives'] == 1
    assert [row['ap'] for row in result['classes']] == pytest.approx([each[0], None, *each[1:]])
    assert [row['positives'] for row in result['classes']] == labels.sum(0).tolist()
    for s, size in enumerate(['small', 'medium', 'large']):
        found = (targets[:, s] & (logits > 0)).sum().item()
        assert result[f'recall_{size}'] == pytest.approx(100 * found / targets[:, s].sum().item())
    json.dumps(result, allow_nan=False)


# Segmentation


@pytest.mark.parametrize('absent', [[], [3, 20]])
def test_intersection_over_union(absent):
    """Of the classes that are not in the truth only the last is not predicted either."""
    random, classes = np.random.RandomState(0), range(21)
    predicted = random.choice([c for c in classes if c not in absent[1:]], (4, 30, 40))
    truth = random.choice([c for c in classes if c not in absent], (4, 30, 40))
    truth[random.rand(4, 30, 40) < 0.1] = IGNORED
    matrix = ConfusionMatrix(CPU, [f'class {c}' for c in classes])
    for one, other in zip(predicted, truth, strict=True):
        matrix.update(torch.tensor(one), torch.tensor(other, dtype=torch.uint8))
    pixels, result = (truth[truth != 255], predicted[truth != 255]), matrix.compute()
    assert matrix.counts.tolist() == theirs.confusion_matrix(*pixels, labels=classes).tolist()
    each = 100 * theirs.jaccard_score(*pixels, labels=classes, average=None, zero_division=0)
    assert result['iou'] == pytest.approx({f'class {c}': each[c] for c in classes})
    assert result['miou'] == pytest.approx(each.mean())
    assert result['present'] == 21 - len(absent)
    assert result['miou_present'] == pytest.approx(each.sum() / (21 - len(absent)))


def test_segmentation_loss_is_the_mean_over_pixels_that_count():
    random = np.random.RandomState(0)
    outputs, labels = torch.tensor(random.randn(2, 21, 6, 5)), torch.tensor(random.randint(0, 21, (2, 6, 5)))
    labels[:, :2] = IGNORED
    expected = nll_loss(outputs.log_softmax(1), labels, ignore_index=IGNORED).item()
    for given in outputs, outputs.log_softmax(1):
        assert segmentation_loss(given, Target(labels.byte(), None)).item() == pytest.approx(expected)
    assert segmentation_loss(outputs, Target(torch.full_like(labels, IGNORED), None)) == 0
