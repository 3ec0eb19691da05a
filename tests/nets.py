"""Nets of full size and shallow ones (tools/check_gpu) as parameters of tests; what they must give, and their files."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tools.check_gpu.golden import TOLERANCE, load_weights
from tools.check_gpu.nets import FAMILIES, NETS, filled, noise, on_meta, recomputing

# And what is defined here.
__all__ = 'FAMILIES', 'NETS', 'filled', 'load_weights', 'noise', 'on_meta', 'recomputing'

CLASSIFIERS = [name for name in FAMILIES if name not in ('deeplab', 'dla_up')]


def in_make_test(*quick: str) -> pytest.MarkDecorator:
    """Parametrises by `name`: these of FAMILIES, and in make test-all the others and the nets of full size as well."""
    slow = [pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES | NETS if name not in quick]
    return pytest.mark.parametrize('name', [*quick, *slow])


def assert_equal(errors: dict[str, float]) -> None:
    """All within the tolerance of the reference's numbers."""
    assert errors
    assert not {name: error for name, error in errors.items() if not error <= TOLERANCE}  # nan neither


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
