"""The three layouts of the sample set, all written from the same scenes.

    ROOT/imagenet/{train,val}/CLASS/NUMBER_INDEX.jpg                    its objects, each in a frame
    ROOT/coco/{train2014,val2014}/COCO_PART2014_NUMBER.jpg              the scenes
    ROOT/coco/annotations/instances_{train,val}2014.json                their objects, as polygons
    ROOT/VOCdevkit/VOC2012/{JPEGImages,SegmentationClassAug}/NUMBER.*   the scenes again, and their masks
    ROOT/VOCdevkit/VOC2012/list/{train_aug,val}.txt                     which of them belong to which part

NUMBER counts the scenes of both parts from 1 on, INDEX the objects of a scene from 0 on.
"""

import json
from pathlib import Path

import numpy as np
from PIL import Image

from data.palette import mask_image
from data.scenes import CLASS_NAMES, SCENE, Scene, Thing

JPEG_QUALITY = 90
VOC = Path('VOCdevkit', 'VOC2012')
VOC_LISTS = {'train': 'train_aug.txt', 'val': 'val.txt'}


def write_scene(root: Path, part: str, number: int, scene: Scene) -> list[dict]:
    """Write a scene's pictures and mask (`part` is train or val); returns its annotations for write_index."""
    paths = {root / 'coco' / f'{part}2014' / coco_name(part, number): scene.picture}
    paths[root / VOC / 'JPEGImages' / f'{number:06d}.jpg'] = scene.picture
    for index, thing in enumerate(scene.things):
        left, top, right, bottom = thing.frame
        path = root / 'imagenet' / part / CLASS_NAMES[thing.label - 1] / f'{number:06d}_{index}.jpg'
        paths[path] = scene.picture[top:bottom, left:right]
    mask = root / VOC / 'SegmentationClassAug' / f'{number:06d}.png'
    for path in (*paths, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    for path, picture in paths.items():
        Image.fromarray(picture).save(path, quality=JPEG_QUALITY)
    mask_image(scene.mask).save(mask)
    return [annotation(number, index, thing) for index, thing in enumerate(scene.things)]


def write_index(root: Path, part: str, numbers: range, annotations: list[dict]) -> None:
    """Write the JSON file and the list of a part whose scenes have these numbers."""
    content = {
        'info': {'description': 'Elastic sample set', 'version': '1.0'},
        'licenses': [],
        'images': [
            {'id': number, 'file_name': coco_name(part, number), 'width': SCENE, 'height': SCENE, 'license': 0}
            for number in numbers
        ],
        'annotations': annotations,
        'categories': [
            {'id': label, 'name': name, 'supercategory': 'shape'} for label, name in enumerate(CLASS_NAMES, 1)
        ],
    }
    lines = [f'/JPEGImages/{number:06d}.jpg /SegmentationClassAug/{number:06d}.png\n' for number in numbers]
    index, names = root / 'coco' / 'annotations' / f'instances_{part}2014.json', root / VOC / 'list' / VOC_LISTS[part]
    for path, text in (index, json.dumps(content)), (names, ''.join(lines)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def coco_name(part: str, number: int) -> str:
    """The file name of a scene in COCO's layout."""
    return f'COCO_{part}2014_{number:012d}.jpg'


def annotation(number: int, index: int, thing: Thing) -> dict:
    """Describe object INDEX of scene NUMBER as COCO does."""
    polygon = thing.polygon.round(2)
    corner, extent = polygon.min(axis=0), np.ptp(polygon, axis=0)
    return {
        'id': 10 * number + index,
        'image_id': number,
        'category_id': thing.label,
        'segmentation': [polygon.ravel().tolist()],
        'area': round(polygon_area(polygon), 2),
        'bbox': np.concatenate([corner, extent]).round(2).tolist(),
        'iscrowd': 0,
    }


def polygon_area(polygon: np.ndarray) -> float:
    """The area inside a polygon (n x 2) that does not cross itself."""
    x, y = polygon.T
    return float(abs(x @ np.roll(y, 1) - y @ np.roll(x, 1)) / 2)
