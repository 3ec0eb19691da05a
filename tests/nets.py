"""The nets that the tests build: all of full size by the names of tests/golden, and a shallow one of each family."""

from collections.abc import Callable
from functools import partial
from inspect import signature
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from models.deeplab import DeepLab
from models.densenet import DenseNet
from models.dla import DLA
from models.dla_up import DLASegmenter
from models.resnext import ResNeXt
from tests.reference import load_weights
from tools.check_gpu.golden import NETS


def dla_up(num_classes: int = 21, checkpoint_activations: bool = False) -> DLASegmenter:
    base = DLA((1, 1, 1, 1, 1, 1), elastic=True)
    return DLASegmenter(base, num_classes, checkpoint_activations=checkpoint_activations)


# Few layers, and all that is in the nets: blocks at two scales and halves at one, identities and projections as
# shortcuts, trees in trees with the children they are handed.
FAMILIES: dict[str, Callable[..., nn.Module]] = {
    'resnext': partial(ResNeXt, (2, 1, 1, 1), se=True, elastic=True),
    'dla': partial(DLA, (1, 1, 1, 2, 1, 1), residual_root=True),
    'dla_elastic': partial(DLA, (1, 1, 1, 1, 1, 1), elastic=True, cardinality=50),
    'densenet': partial(DenseNet, (1, 1, 1, 1)),
    'densenet_elastic': partial(DenseNet, (2, 1, 1, 1), elastic=True),
    'deeplab': partial(DeepLab, (2, 1, 1), elastic=True),
    'dla_up': dla_up,
}
CLASSIFIERS = [name for name in FAMILIES if name not in ('deeplab', 'dla_up')]


def in_make_test(*quick: str) -> pytest.MarkDecorator:
    """Parametrises by `name`: these of FAMILIES, and in make test-all the others and the nets of full size as well."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES | NETS if name not in quick]
    return pytest.mark.parametrize('name', [*quick, *slow])


def on_meta(name: str, *args, **kwargs) -> nn.Module:
    """The net without memory for its weights."""
    with torch.device('meta'):
        return (NETS | FAMILIES)[name](*args, **kwargs)


def filled(name: str, *args, dtype: torch.dtype = torch.float32, **kwargs) -> nn.Module:
    """The net in evaluation with the weights of the recordings: every branch counts, also those that begin at zero."""
    return load_weights(on_meta(name, *args, **kwargs).to(dtype)).eval()


def recomputing(name: str) -> dict[str, bool]:
    """The argument that asks for recomputed activations, as segment.py does, for nets that know it."""
    known = signature((NETS | FAMILIES)[name]).parameters
    return {key: True for key in ('checkpoint_activations',) if key in known}


def noise(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """The same normal values at each call."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


def ran(path: Path, images: Tensor) -> Tensor:
    """The scores that an exported file gives."""
    if path.suffix == '.pt2':
        return torch.export.load(path).module()(images)
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=['CPUExecutionProvider'])
    return torch.from_numpy(session.run(None, {'images': images.numpy()})[0])


def assert_equals_eager(files: list[Path], model: nn.Module, size: int) -> None:
    """Exported files give what the model gives, at batch sizes the exporter has not seen."""
    for batch in 1, 3:
        images = noise(batch, 3, size, size)
        with torch.inference_mode():
            expected = model(images)
        assert expected.std() > 0.01
        for file in files:
            torch.testing.assert_close(ran(file, images), expected, rtol=1e-4, atol=1e-5 * expected.abs().max().item())
