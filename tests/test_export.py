"""Exported programs and ONNX files against the nets they are of."""

from functools import partial

import pytest
import torch
from torch import nn

import models
from models.deeplab import DeepLab
from models.densenet import DenseNet
from models.dla import DLA
from models.dla_up import DLASegmenter
from models.resnext import ResNeXt
from utils.export import export


def lively(model, seed=0):
    """The net in evaluation with random statistics and norms: all branches count, also those that start at zero."""
    torch.manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model.eval()


def ran(path, images):
    """The scores that an exported file gives."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


def assert_equals_eager(files, model, size):
    """At batch sizes the exporter has not seen."""
    for batch in 1, 3:
        images = torch.randn(batch, 3, size, size)
        with torch.inference_mode():
            expected = model(images)
        assert expected.std() > 0.01
        for file in files:
            torch.testing.assert_close(ran(file, images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())


# Each family with all that is in its nets, but few layers. At 65 pixels the maps are odd at every stride, as at VOC's
# 513: there elastic blocks pool half windows, and crop.
FAMILIES = {
    'resnext': (partial(ResNeXt, (1, 1, 1, 1), se=True, elastic=True), 65),
    'dla': (partial(DLA, (1, 1, 1, 1, 1, 1), residual_root=True), 64),
    'densenet': (partial(DenseNet, (1, 1, 1, 1)), 64),
    'densenet_elastic': (partial(DenseNet, (1, 1, 1, 1), elastic=True), 65),
    'deeplab': (partial(DeepLab, (1, 1, 1), elastic=True), 65),
    'dla_up': (lambda num_classes: DLASegmenter(DLA((1, 1, 1, 1, 1, 1), elastic=True), num_classes), 65),
}


@pytest.mark.parametrize('name', FAMILIES)
def test_exports_of_the_families_equal_eager(name, tmp_path):
    build, size = FAMILIES[name]
    model = lively(build(num_classes=9))
    assert_equals_eager(export(model, tmp_path / 'net.pt2', size), model, size)


KINDS = {'classifier': models.classifiers, 'segmenter': models.segmenters}
NETS = [(kind, name) for kind, registry in KINDS.items() for name in registry]


@pytest.mark.slow
@pytest.mark.parametrize('kind, name', NETS)
def test_exports_of_the_nets_equal_eager(kind, name, tmp_path):
    model = lively(KINDS[kind][name](num_classes=9))
    assert_equals_eager(export(model, tmp_path / 'net.pt2', 65), model, 65)
