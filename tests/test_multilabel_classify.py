"""multilabel_classify.py on a small set in COCO's layout: its annotations as a table, printed lines, exact resume."""

import json
import re

import numpy as np
import pytest
from PIL import Image

import multilabel_classify as script
from tests.conftest import Script, stop_at
from tests.pictures import write_json
from tests.runs import LAST_OF_COCO as LAST
from tests.runs import assert_same, content, epochs
from tools import prediction_sheet
from utils.coco import open_part, read_table, squashed
from utils.errors import UserError
from utils.interrupt import Stopped
from utils.multilabel import NAMES

# Annotations


def annotations():
    """Two categories in an order of their own, three images of which one is empty, areas on the bounds of the sizes."""
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


def test_table_has_categories_in_the_files_order_and_empty_images(tmp_path, capsys):
    table = read_table(write_json(tmp_path / 'a.json', annotations()))
    assert table.classes == ['toothbrush', 'person']
    assert table.files.tolist() == ['1.jpg', '2.jpg', '7.jpg']
    assert np.argwhere(table.present).tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 2, 1]]
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'change, told',
    [
        ({'category_id': 5}, 'annotation 10 names an unknown category_id, 5'),
        ({'image_id': 3}, 'annotation 10 names an unknown image_id, 3'),
        ({'area': -1}, 'annotation 10 has the area -1'),
        ({'area': None}, 'annotation 10 has the area None'),
        ({'area': float('nan')}, 'annotation 10 has the area nan'),
    ],
)
def test_wrong_annotation_is_named(tmp_path, change, told):
    value = annotations()
    value['annotations'][0].update(change)
    path = write_json(tmp_path / 'a.json', value)
    with pytest.raises(UserError, match=re.escape(f'{path}: {told}')):
        read_table(path)


def test_annotation_without_area(tmp_path):
    value = annotations()
    del value['annotations'][1]['area']
    with pytest.raises(UserError, match='annotation 11 has the area None'):
        read_table(write_json(tmp_path / 'a.json', value))


@pytest.mark.parametrize('part', ['images', 'categories', 'annotations'])
def test_annotation_file_without_a_part_is_named(tmp_path, part):
    value = annotations()
    del value[part]
    with pytest.raises(UserError, match='a.json'):
        read_table(write_json(tmp_path / 'a.json', value))


DAMAGED = '{"images": [', '[]', '[' * 100_000, '{"images": [{"id": 1}], "categories": [{"id": 1}]}', '{}'


@pytest.mark.parametrize('text', DAMAGED, ids=range(len(DAMAGED)))
def test_damaged_annotation_file_is_named(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UserError, match='a.json'):
        read_table(tmp_path / 'a.json')


@pytest.mark.parametrize(
    'part, change, told',
    [
        ('images', {'id': 2}, 'two entries with the image id 2'),
        ('categories', {'id': 1}, 'two entries with the category id 1'),
        ('images', {'file_name': ''}, "its content.images[0].file_name is '', not the name of a file"),
        ('images', {'file_name': '..'}, "its content.images[0].file_name is '..', not the name of a file"),
        ('images', {'file_name': 7}, 'its content.images[0].file_name is 7, not the name of a file'),
        ('images', {'file_name': ['a']}, 'its content.images[0].file_name is a list, not the name of a file'),
        ('images', {'id': 1.5}, 'its content.images[0].id is 1.5, not an id'),
        ('categories', {'name': None}, 'its content.categories[0].name is None, not a name'),
        ('annotations', {'area': 10**400}, 'annotation 10 has the area 1000'),
        ('annotations', {'area': float('inf')}, 'annotation 10 has the area inf'),
        ('annotations', {'image_id': []}, 'not an annotation file of COCO, or a damaged one: '),
    ],
)
def test_wrong_image_or_category_is_named(tmp_path, part, change, told):
    value = annotations()
    value[part][0].update(change)
    path = write_json(tmp_path / 'a.json', value)
    with pytest.raises(UserError, match=re.escape(f'{path}: {told}')):
        read_table(path)


@pytest.mark.parametrize('part', ['images', 'categories', 'annotations'])
@pytest.mark.parametrize('other', [7, 'text', {'a': 1}, [7], [None], ['text'], [[]]])
def test_parts_that_are_no_lists_of_dicts(tmp_path, part, other):
    path = write_json(tmp_path / 'a.json', {**annotations(), part: other})
    with pytest.raises(UserError, match='a.json: '):
        read_table(path)


def test_missing_files_are_named(tmp_path):
    with pytest.raises(UserError, match='no folder .*val2014'):
        open_part(tmp_path, 'val', '2014', squashed(8))
    (tmp_path / 'val2014').mkdir()
    with pytest.raises(UserError, match='no annotation file .*instances_val2014.json'):
        open_part(tmp_path, 'val', '2014', squashed(8))
    write_json(tmp_path / 'annotations' / 'instances_val2014.json', annotations())
    (tmp_path / 'val2014' / '2.jpg').touch()
    with pytest.raises(UserError, match=r'val2014: 2 images of the annotation file are not there: 1\.jpg, 7\.jpg'):
        open_part(tmp_path, 'val', '2014', squashed(8))


# The script


@pytest.fixture
def multilabel(coco, tiny):
    """multilabel_classify.py with TinyNet: batches of 2 x 4, two epochs."""
    return Script(script, coco, '-a tiny -b 8 -g 2 --epochs 2 --lr 0.05 --image-size 32 -j 0 -p 3 --device cpu')


def test_printed_lines_have_the_form_of_the_reference(multilabel, tmp_path, capsys):
    multilabel('--output', tmp_path)
    out = capsys.readouterr().out
    time, rate = r'\d+\.\d{3} \(\d+\.\d{3}\)', r'\d+\.\d{2} \(\d+\.\d{2}\)'
    measures = rf'Loss \d+\.\d{{4}} \(\d+\.\d{{4}}\)\tPrecision {rate}\tRecall {rate}'
    results = ' '.join(rf'{name} \d+\.\d\d' for name in NAMES)
    train = re.findall(rf'^Epoch: \[\d\]\[\d/6\]\tTime {time}\tData {time}\t{measures}\n{results}$', out, re.M)
    test = re.findall(rf'^Test: \[\d/3\]\tTime {time}\t{measures}\n{results}$', out, re.M)
    sizes = r'Recall small \d+\.\d\d medium \d+\.\d\d large \d+\.\d\d'
    ends = re.findall(rf'^ \* {results}\n   mAP \d+\.\d\d \(\d classes absent\) {sizes}$', out, re.M)
    assert (len(train), len(test), len(ends)) == (4, 2, 2)


def test_evaluation_prints_what_training_printed_and_the_log_has_a_row_per_class(multilabel, tmp_path, capsys):
    multilabel('--output', tmp_path)
    trained = capsys.readouterr().out.splitlines()[-2:]
    multilabel('--evaluate', '--resume', tmp_path / LAST)
    assert capsys.readouterr().out.splitlines()[-2:] == trained
    assert [row['class'] for row in epochs(tmp_path)[-1]['val']['classes']] == ['ant', 'bee', 'cow']


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('call', [7, 25])
def test_stopped_and_resumed_run_is_bit_identical(multilabel, tmp_path, monkeypatch, workers, call):
    multilabel('--output', tmp_path / 'whole', '-j', workers)
    with monkeypatch.context() as patch, pytest.raises(Stopped):
        stop_at(patch, call if workers == 0 else call // 2)
        multilabel('--output', tmp_path / 'parts', '-j', workers)
    multilabel('--output', tmp_path / 'parts', '-j', workers, '--auto-resume')
    assert_same(content(tmp_path / 'parts', LAST), content(tmp_path / 'whole', LAST))
    assert epochs(tmp_path / 'parts')[-1] == epochs(tmp_path / 'whole')[-1]


def test_imagenet_checkpoint_is_transferred(multilabel, classify, tmp_path, capsys):
    classify('--output', tmp_path / 'imagenet', '--epochs', 1)
    source = tmp_path / 'imagenet' / 'tiny_checkpoint.pth.tar'
    multilabel('--resume', source, '--output', tmp_path / 'coco_run', '--epochs', 0)
    assert 'left out, as initialised: fc\n' in capsys.readouterr().out
    error = multilabel.error(capsys, '--evaluate', '--resume', source)
    assert 'cannot be evaluated here: its task is imagenet, not coco' in error


def test_checkpoint_of_another_class_count_is_not_evaluated(multilabel, coco, tmp_path, capsys):
    multilabel('--output', tmp_path / 'run')
    path = coco / 'annotations' / 'instances_val2014.json'
    value = json.loads(path.read_text())
    value['categories'].append({'id': 9, 'name': 'dog'})
    path.write_text(json.dumps(value))
    error = multilabel.error(capsys, '--evaluate', '--resume', tmp_path / 'run' / LAST)
    assert 'its head has 3 classes, not 4' in error
    assert 'train and val must have the same categories; they differ in dog' in multilabel.error(capsys)


def test_year_2017(multilabel, coco, tmp_path):
    for part in 'train', 'val':
        (coco / f'{part}2014').rename(coco / f'{part}2017')
        (coco / 'annotations' / f'instances_{part}2014.json').rename(
            coco / 'annotations' / f'instances_{part}2017.json'
        )
    multilabel('--year', 2017, '--output', tmp_path / 'run', '--epochs', 1)
    assert (tmp_path / 'run' / LAST).exists()


def test_missing_image_and_truncated_annotations(multilabel, coco, capsys):
    (coco / 'train2014' / 'train_3.png').unlink()
    assert 'train2014: 1 images of the annotation file are not there: train_3.png' in multilabel.error(capsys)
    path = coco / 'annotations' / 'instances_train2014.json'
    path.write_text(path.read_text()[:-20])
    assert f'{path}: not an annotation file of COCO, or a damaged one' in multilabel.error(capsys)


def test_sheet_of_predictions(multilabel, coco, tmp_path, capsys, monkeypatch):
    multilabel('--output', tmp_path / 'run', '--epochs', 1)
    sheet = Script(prediction_sheet, tmp_path / 'run' / LAST, f'{coco} {tmp_path}/sheet.png --image-size 32')
    sheet('--images', 7)
    with Image.open(tmp_path / 'sheet.png') as picture:
        assert picture.size[0] > 500
    data = open_part(coco, 'val', '2014', squashed(32))
    args = prediction_sheet.make_parser().parse_args([*sheet.shared, '--images', '7'])
    few = prediction_sheet.predict(args, data, np.array([0, 4]))
    everything = prediction_sheet.predict(args, data, np.arange(9))
    np.testing.assert_allclose(few, everything[[0, 4]], rtol=1e-5)
    (tmp_path / 'folder.png').mkdir()
    monkeypatch.setattr(prediction_sheet, 'predict', None)  # told before
    elsewhere = Script(prediction_sheet, tmp_path / 'run' / LAST, f'{coco} {tmp_path}/folder.png')
    assert elsewhere.error(capsys) == f'error: cannot write {tmp_path}/folder.png: it is a folder'
    assert '--image-size: invalid' in sheet.error(capsys, '--image-size', 31)
    assert 'no folder' in Script(prediction_sheet, tmp_path / 'run' / LAST, f'{tmp_path} out.png').error(capsys)
