"""Small sets of pictures in the layouts of COCO, VOC and Fashion-MNIST, and a segmenter that knows VOC's truth."""

import gzip
import json
import struct

import numpy as np
from PIL import Image
from torch import nn
from torch.nn.functional import one_hot

from data.palette import mask_image
from utils.loader import MEAN, STD

STEP = 12  # grey levels from one label to the next in the pictures of `scene`
SIZES = [(1, 1), (1, 600), (37, 52), (333, 500), (512, 513), (514, 500), (600, 400), (577, 578)]


def scene(height, width, seed=0, cell=1):
    """A picture whose brightness tells the labels 0..20 of its mask, in square cells."""
    labels = np.random.RandomState(seed).randint(0, 21, (-(-height // cell), -(-width // cell)))
    labels = labels.repeat(cell, 0).repeat(cell, 1)[:height, :width].astype(np.uint8)
    picture = Image.fromarray(np.repeat(labels[..., None] * STEP, 3, 2))
    return picture, mask_image(labels)


def write_voc(folder, **parts):
    """FOLDER/VOC2012 with scenes of these sizes per list."""
    voc = folder / 'VOC2012'
    for name in ('JPEGImages', 'SegmentationClassAug', 'list'):
        (voc / name).mkdir(parents=True)
    for part, sizes in parts.items():
        names = [f'{part}_{number}' for number in range(len(sizes))]
        for seed, (name, size) in enumerate(zip(names, sizes, strict=True)):
            picture, mask = scene(*size, seed=seed, cell=5)
            picture.save(voc / 'JPEGImages' / f'{name}.png')
            mask.save(voc / 'SegmentationClassAug' / f'{name}.png')
        lines = [f'/JPEGImages/{name}.png /SegmentationClassAug/{name}.png\n' for name in names]
        (voc / 'list' / f'{part}.txt').write_text(''.join(lines))
    return folder


class Oracle(nn.Module):
    """A segmenter that reads the labels from the brightness of these pictures."""

    backbone, head_names, untrained, smallest_batch = (), ('head',), (), 1

    def __init__(self, num_classes=21, checkpoint_activations=False):
        super().__init__()
        self.head = nn.Linear(1, num_classes)

    def forward(self, x):
        grey = (x[:, 0] * STD[0] + MEAN[0]) * 255
        return one_hot((grey / STEP).round().long().clamp(0, 20), 21).permute(0, 3, 1, 2).float()


def annotations():
    """COCO's, of two categories in an order of their own and three images, one empty; areas on the sizes' bounds."""
    areas = {1: [0, 32**2 - 1], 2: [32**2, 96**2]}
    return {
        'images': [{'id': n, 'file_name': f'{n}.jpg', 'width': 40, 'height': 40} for n in (1, 2, 7)],
        'categories': [{'id': 90, 'name': 'toothbrush'}, {'id': 1, 'name': 'person'}],
        'annotations': [
            {'id': 10 * image + n, 'image_id': image, 'category_id': (90, 1)[n], 'area': area, 'iscrowd': n}
            for image, of_image in areas.items()
            for n, area in enumerate(of_image)
        ],
    }


def write_json(path, value):
    """PATH, and the folder for it, with this value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))
    return path


def write_coco(folder, **parts):
    """FOLDER in COCO's layout of 2014 with so many pictures per part, of three classes."""
    random = np.random.RandomState(0)
    for part, count in parts.items():
        images = [{'id': n, 'file_name': f'{part}_{n}.png'} for n in range(count)]
        notes = [
            {'id': 3 * n + c, 'image_id': n, 'category_id': c, 'area': 500.0 * 4**c, 'iscrowd': 0}
            for n in range(count)
            for c in range(3)
            if random.rand() < 0.4
        ]
        categories = [{'id': c, 'name': name} for c, name in enumerate(('ant', 'bee', 'cow'))]
        value = {'images': images, 'annotations': notes, 'categories': categories}
        write_json(folder / 'annotations' / f'instances_{part}2014.json', value)
        (folder / f'{part}2014').mkdir()
        for image in images:
            pixels = (random.rand(40, 48, 3) * 255).astype('uint8')
            Image.fromarray(pixels).save(folder / f'{part}2014' / image['file_name'])
    return folder


def write_fashion(folder, train, t10k):
    """FOLDER with the four files of Fashion-MNIST: these photos, N x 28 x 28, and labels 0 to 9 over and over."""
    folder.mkdir(exist_ok=True)
    for part, photos in ('train', train), ('t10k', t10k):
        labels = np.arange(len(photos), dtype=np.uint8) % 10
        for name, values in (f'{part}-images-idx3', photos), (f'{part}-labels-idx1', labels):
            header = struct.pack(f'>BBBB{values.ndim}I', 0, 0, 8, values.ndim, *values.shape)  # 8: of bytes
            (folder / f'{name}-ubyte.gz').write_bytes(gzip.compress(header + values.tobytes()))
    return folder
