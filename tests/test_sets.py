"""The sets of COCO and VOC: annotations as a table, lists, masks, joint transforms; testing at several scales."""

import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from data.coco import open_part, read_annotations, squashed
from data.voc import open_scene, open_voc
from data.voc_transforms import PadToSize, RandomScaleCrop
from tests.pictures import SIZES, annotations, scene, write_json
from utils.errors import UserError
from utils.segmentation import IGNORED, MultiScale


def test_annotations_have_categories_in_the_files_order_and_empty_images(tmp_path, capsys):
    files, present, classes = read_annotations(write_json(tmp_path / 'a.json', annotations()))
    assert classes == ['toothbrush', 'person']
    assert files.tolist() == ['1.jpg', '2.jpg', '7.jpg']
    assert np.argwhere(present).tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 2, 1]]
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'part, change, told',
    [
        ('annotations', {'category_id': 5}, 'annotation 10 names an unknown category_id, 5'),
        ('annotations', {'image_id': []}, 'not an annotation file of COCO, or a damaged one: '),
        ('annotations', {'area': None}, 'annotation 10 has the area None'),
        ('annotations', {'area': -1}, 'annotation 10 has the area -1'),
        ('annotations', {'area': float('inf')}, 'annotation 10 has the area inf'),
        ('images', {'id': 2}, 'two entries with the image id 2'),
    ],
)
def test_wrong_entry_is_named(tmp_path, part, change, told):
    value = annotations()
    value[part][0].update(change)
    path = write_json(tmp_path / 'a.json', value)
    with pytest.raises(UserError, match=re.escape(f'{path}: {told}')):
        read_annotations(path)


def test_year_is_part_of_names_and_a_file_without_images_is_told(tmp_path):
    (tmp_path / 'val2017').mkdir()
    with pytest.raises(UserError, match='no annotation file .*instances_val2017.json'):
        open_part(tmp_path, 'val', '2017', squashed(8))
    write_json(tmp_path / 'annotations' / 'instances_val2017.json', {})
    with pytest.raises(UserError, match='instances_val2017.json: lists no images'):
        open_part(tmp_path, 'val', '2017', squashed(8))


# VOC


@pytest.mark.parametrize('height, width', SIZES)
def test_test_images_are_centred_in_513_pixels_or_the_next_16n_plus_1(height, width):
    picture, mask = scene(height, width)
    image, labels = PadToSize(513)(picture, mask)
    for whole, side in zip(labels.shape, (height, width), strict=True):
        assert whole == 513 if side <= 513 else (whole % 16 == 1 and side <= whole < side + 16)
    lacking = [whole - side for whole, side in zip(labels.shape, (height, width), strict=True)]
    pads = [(both // 2, both - both // 2) for both in lacking]
    inside = np.pad(np.ones((height, width)), pads)
    assert np.array_equal(image.permute(1, 2, 0), np.dstack([np.pad(picture, [*pads, (0, 0)]), inside]))
    assert np.array_equal(labels, np.pad(mask, pads, constant_values=IGNORED))


@pytest.mark.parametrize('height, width', [(20, 31), (64, 65), (66, 300), (200, 90)])
def test_crops_are_those_of_the_scaled_image_padded_by_half_of_what_it_lacks_on_each_side(height, width):
    """Built whole in NumPy: flip, resize, pad by max(0, int((1 + crop - side) / 2)) on both ends, cut."""
    size = 65
    for seed in range(30):
        torch.manual_seed(seed)
        image, labels = RandomScaleCrop(size)(*scene(height, width, cell=4))
        torch.manual_seed(seed)
        flip, scale, *places = torch.rand(4).tolist()
        picture, mask = scene(height, width, cell=4)
        if flip < 0.5:
            picture, mask = ImageOps.mirror(picture), ImageOps.mirror(mask)
        wide, high = (round(side * 2 ** (2 * scale - 1)) for side in (width, height))
        pads = [(max(0, int((1 + size - side) / 2)),) * 2 for side in (high, wide)]
        pixels = np.pad(picture.resize((wide, high), Image.Resampling.LANCZOS), [*pads, (0, 0)])
        inside = np.pad(np.ones((high, wide)), pads)
        truth = np.pad(mask.resize((wide, high), Image.Resampling.NEAREST), pads, constant_values=IGNORED)
        free = [side - size + 1 for side in truth.shape]
        top, left = (int(place * positions) for place, positions in zip(places, free, strict=True))
        part = np.s_[top : top + size, left : left + size]
        assert np.array_equal(image.permute(1, 2, 0), np.dstack([pixels, inside])[part])
        assert np.array_equal(labels, truth[part])


def test_scales_and_mirrors_are_averaged_as_probabilities():
    torch.manual_seed(0)
    net, images = torch.nn.Conv2d(3, 5, 3, padding=1), torch.randn(2, 3, 33, 49)

    def at(x, size):
        x = F.interpolate(x, size, mode='bilinear', align_corners=True)
        return F.interpolate(net(x).softmax(1), images.shape[-2:], mode='bilinear', align_corners=True)

    with torch.no_grad():
        plain = net(images).softmax(1)
        torch.testing.assert_close(MultiScale(net, [1.0], False)(images).exp(), plain)
        mirrored = net(images.flip(3)).softmax(1).flip(3)
        torch.testing.assert_close(MultiScale(net, [1.0], True)(images).exp(), (plain + mirrored) / 2)
        found = MultiScale(net, [0.5, 1.0, 1.5], False)(images).exp()
        # 16n + 1 nearest to 16.5 x 24.5 and to 49.5 x 73.5
        torch.testing.assert_close(found, (plain + at(images, (17, 17)) + at(images, (49, 81))) / 3)


@pytest.mark.parametrize(
    'content, told',
    [
        (b'', 'val.txt: empty; lines must have the form'),
        (b'/a.jpg\n', 'val.txt: /a.jpg; lines must have the form /JPEGImages/x.jpg'),
        (b'/a.jpg /a.png\n', 'names 2 files that are not there: .*a.jpg, .*a.png'),
        (b'/JPEGImages/\xff.jpg /SegmentationClassAug/\xff.png', 'cannot read .*val.txt: .*utf-8'),
    ],
)
def test_wrong_list_is_named(tmp_path, content, told):
    (tmp_path / 'list').mkdir()
    (tmp_path / 'list' / 'val.txt').write_bytes(content)
    with pytest.raises(UserError, match=told):
        open_voc(tmp_path, 'val.txt', PadToSize(9))


@pytest.mark.parametrize(
    'mask, told',
    [
        (Image.new('L', (8, 7)), 'mask.png is 8 x 7 pixels, its image 8 x 6'),
        (Image.new('L', (8, 6), 21), 'mask.png: label 21; labels go from 0 to 20, and 255'),
        (Image.new('RGB', (8, 6)), 'mask.png: a mask is a palette or grey picture.*RGB'),
        (None, 'cannot read mask .*mask.png'),
    ],
)
def test_wrong_mask_is_named(tmp_path, mask, told):
    Image.new('RGB', (8, 6)).save(tmp_path / 'image.png')
    (tmp_path / 'mask.png').write_bytes(b'') if mask is None else mask.save(tmp_path / 'mask.png')
    with pytest.raises(UserError, match=told):
        open_scene(tmp_path / 'image.png', tmp_path / 'mask.png')
