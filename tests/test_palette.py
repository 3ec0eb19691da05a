"""VOC's palette: known colours, and the committed file."""

import subprocess
import sys

import numpy as np
from scipy.io import loadmat

from data.palette import MAT_FILE, voc_palette, write_mat


def test_known_colours():
    palette = voc_palette()
    known = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (128, 128, 128), 15: (192, 128, 128), 20: (0, 64, 128)}
    assert {label: tuple(palette[label].tolist()) for label in known} == known
    assert tuple(palette[255]) == (224, 224, 192)
    assert len(np.unique(palette, axis=0)) == 256


def test_colours_need_no_scipy():
    code = 'import sys; sys.path[0] = sys.argv[1]; import data.palette; print("scipy" in sys.modules)'
    root = MAT_FILE.parent.parent
    ended = subprocess.run([sys.executable, '-c', code, root], capture_output=True, text=True, check=True, timeout=100)
    assert ended.stdout == 'False\n'


def test_committed_file_is_the_palette(tmp_path):
    write_mat(tmp_path / 'new.mat')
    for path in MAT_FILE, tmp_path / 'new.mat':
        colormap = loadmat(path)['colormap']
        assert colormap.dtype == np.float64
        np.testing.assert_array_equal(colormap, voc_palette() / 255)
