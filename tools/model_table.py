"""Prints the table of the classifiers that the README shows.

python -m tools.model_table
"""

import torch

import models
from models.cost import count_macs, count_parameters
from tools import markdown

OCTCONV = '[OctConv](https://arxiv.org/abs/1904.05049)'
CSPNET = '[CSPNet](https://arxiv.org/abs/1911.11929)'
# ImageNet errors in % of the paper's own models, top-1 (and top-5), as other papers quote them; the rest is not known.
PUBLISHED: dict[str, tuple[dict[str, float], str]] = {
    'resnext50_elastic': ({'err1': 21.6}, OCTCONV),
    'resnext101_elastic': ({'err1': 20.8}, OCTCONV),
    'densenet201_elastic': ({'err1': 22.1, 'err5': 6.0}, CSPNET),
}
HEADER = 'net', 'parameters (M)', 'GMACs at 224', 'published top-1 error (%)', 'as quoted by'


def row(name: str) -> tuple[str, ...]:
    """One net's cells; cost as computed here, from a net on the meta device."""
    with torch.device('meta'):
        net = models.build_classifier(name)
    errors, source = PUBLISHED.get(name, ({}, ''))
    published = str(errors.get('err1', '')) + (f' (top-5 {errors["err5"]})' if 'err5' in errors else '')
    return name, f'{count_parameters(net) / 1e6:.2f}', f'{count_macs(net) / 1e9:.3f}', published, source


if __name__ == '__main__':
    print(markdown.table(HEADER, 'lrrrl', map(row, models.classifiers)))
