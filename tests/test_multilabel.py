"""Multi-label metrics and loss against a plain NumPy computation and scikit-learn."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score
from torch.nn.functional import binary_cross_entropy_with_logits

from utils.multilabel import NAMES, MultiLabelCounts, MultiLabelScores, average_precision, multilabel_loss

CPU = torch.device('cpu')


def random_batch(samples, classes, seed=0, decimals=None):
    """Logits N x C and booleans N x 3 x C; class 0 is never predicted, class 1 never present."""
    random = np.random.RandomState(seed)
    logits = random.standard_normal((samples, classes))
    if decimals is not None:
        logits = logits.round(decimals)
    targets = random.rand(samples, 3, classes) < 0.2
    logits[:, 0], targets[:, :, 1] = -1, False
    return torch.tensor(logits), torch.tensor(targets)


def plainly(logits, targets):
    """The definitions in words, one class and one image at a time."""
    samples, _, classes = targets.shape
    p, r, f, sums = [], [], [], np.zeros(3)
    for c in range(classes):
        tp = fp = fn = 0
        for n in range(samples):
            predicted, label = bool(logits[n, c] > 0), any(targets[n, s, c] for s in range(3))
            tp, fp, fn = tp + (predicted and label), fp + (predicted and not label), fn + (label and not predicted)
        p.append(tp / (tp + fp) if tp else 0)
        r.append(tp / (tp + fn) if tp else 0)
        f.append(2 * p[-1] * r[-1] / (p[-1] + r[-1]) if tp else 0)
        sums += tp, fp, fn
    tp, fp, fn = sums
    po, ro = (tp / (tp + fp), tp / (tp + fn)) if tp else (0, 0)
    overall = po, ro, 2 * po * ro / (po + ro) if tp else 0
    return dict(zip(NAMES, 100 * np.array([np.mean(p), np.mean(r), np.mean(f), *overall]), strict=True))


def measured(kind, logits, targets, batches=3):
    metrics = kind(CPU, [f'class {c}' for c in range(logits.shape[1])])
    for part in torch.arange(len(logits)).chunk(batches):
        metrics.update(multilabel_loss(logits[part], targets[part]), logits[part], targets[part])
    return metrics


@pytest.mark.parametrize('kind', [MultiLabelCounts, MultiLabelScores])
@pytest.mark.parametrize('seed', range(3))
def test_metrics_equal_the_plain_computation(kind, seed):
    logits, targets = random_batch(40, 7, seed)
    result = measured(kind, logits, targets).compute()
    expected = plainly(logits.numpy(), targets.numpy())
    assert {name: result[name] for name in NAMES} == pytest.approx(expected, abs=1e-9)


def test_nothing_predicted_is_all_zero():
    logits, targets = random_batch(40, 7)
    result = measured(MultiLabelScores, logits - 100, targets).compute()
    assert [result[name] for name in NAMES] == [0] * 6


@pytest.mark.parametrize('decimals', [None, 1, 0])
def test_average_precision_is_scikit_learns_ties_included(decimals):
    logits, targets = random_batch(200, 9, decimals=decimals)
    labels = targets.any(1)
    ours = average_precision(logits, labels)
    for c in range(9):
        if c == 1:
            assert ours[c].isnan()
            continue
        assert ours[c].item() == pytest.approx(average_precision_score(labels[:, c], logits[:, c]), abs=1e-6)


def test_mean_average_precision_leaves_absent_classes_out_and_counts_them():
    logits, targets = random_batch(60, 5)
    metrics = measured(MultiLabelScores, logits, targets)
    metrics.reduce()
    result, labels = metrics.compute(), targets.any(1)
    each = [100 * average_precision_score(labels[:, c], logits[:, c]) for c in (0, 2, 3, 4)]
    assert result['mAP'] == pytest.approx(np.mean(each))
    assert result['classes_without_positives'] == 1
    assert [row['ap'] for row in result['classes']] == pytest.approx([each[0], None, *each[1:]])
    assert [row['positives'] for row in result['classes']] == labels.sum(0).tolist()
    json.dumps(result, allow_nan=False)


def test_recall_by_size_counts_each_size_of_a_class_in_an_image():
    logits, targets = random_batch(60, 5)
    result = measured(MultiLabelScores, logits, targets).compute()
    for s, size in enumerate(['small', 'medium', 'large']):
        found = (targets[:, s] & (logits > 0)).sum().item()
        assert result[f'recall_{size}'] == pytest.approx(100 * found / targets[:, s].sum().item())


def test_loss_is_the_sum_over_classes_and_the_mean_over_images():
    logits, targets = random_batch(4, 7)
    labels = targets.any(1).double()
    expected = binary_cross_entropy_with_logits(logits, labels, reduction='sum') / 4
    assert multilabel_loss(logits, targets).item() == pytest.approx(expected.item())


def test_counts_go_on_from_a_saved_state():
    logits, targets = random_batch(40, 7)
    whole = measured(MultiLabelCounts, logits, targets, 2)
    half = measured(MultiLabelCounts, logits[:20], targets[:20], 1)
    resumed = MultiLabelCounts(CPU, half.classes)
    resumed.load_state_dict(half.state_dict())
    resumed.update(multilabel_loss(logits[20:], targets[20:]), logits[20:], targets[20:])
    assert resumed.compute() == whole.compute()
