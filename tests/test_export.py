"""Exported programs and ONNX files against the nets they are of."""

from tests.nets import assert_equals_eager, filled, in_make_test
from tools.export import export


@in_make_test('densenet_elastic', 'deeplab', 'dla_up')  # whose trunks are a ResNeXt and a DLA
def test_exports_equal_eager(name, tmp_path):
    """At 65 pixels the maps are odd at every stride, as at VOC's 513: elastic blocks pool half windows, and crop."""
    model = filled(name, 9)
    assert_equals_eager(export(model, tmp_path / 'net.pt2', 65), model, 65)
