"""utils/coco.py: annotations as a table, what is wrong with them in one line, what workers carry of them."""

import pickle
import re

import numpy as np
import pytest

from tests.pictures import annotations, write_json
from utils.coco import open_part, read_table, squashed
from utils.errors import UserError


def test_table_has_categories_in_the_files_order_and_empty_images(tmp_path, capsys):
    table = read_table(write_json(tmp_path / 'a.json', annotations()))
    assert table.classes == ['toothbrush', 'person']
    assert table.files.tolist() == ['1.jpg', '2.jpg', '7.jpg']
    assert np.argwhere(table.present).tolist() == [[0, 0, 0], [0, 0, 1], [1, 1, 0], [1, 2, 1]]
    assert capsys.readouterr().out == ''


@pytest.mark.parametrize(
    'part, change, told',
    [
        ('annotations', {'category_id': 5}, 'annotation 10 names an unknown category_id, 5'),
        ('annotations', {'image_id': []}, 'not an annotation file of COCO, or a damaged one: '),
        *(('annotations', {'area': area}, f'annotation 10 has the area {str(area)[:9]}')
          for area in (-1, None, float('nan'), float('inf'), 10**400)),
        ('images', {'id': 2}, 'two entries with the image id 2'),
        ('images', {'id': 1.5}, 'its content.images[0].id is 1.5, not an id'),
        *(('images', {'file_name': name}, f'its content.images[0].file_name is {name!r}, not the name of a file')
          for name in ('', '..', 7)),
        ('images', {'file_name': ['a']}, 'its content.images[0].file_name is a list, not the name of a file'),
        ('categories', {'name': None}, 'its content.categories[0].name is None, not a name'),
    ],
)  # fmt: skip
def test_wrong_entry_is_named(tmp_path, part, change, told):
    value = annotations()
    value[part][0].update(change)
    path = write_json(tmp_path / 'a.json', value)
    with pytest.raises(UserError, match=re.escape(f'{path}: {told}')):
        read_table(path)


@pytest.mark.parametrize('part', ['images', 'categories', 'annotations'])
@pytest.mark.parametrize('other', [None, [], 7, 'text', {'a': 1}, [7], [None], ['text'], [[]]])
def test_part_that_is_no_list_of_dicts_is_told(tmp_path, part, other):
    with pytest.raises(UserError, match='a.json: '):
        read_table(write_json(tmp_path / 'a.json', annotations() | {part: other}))


@pytest.mark.parametrize('text', ['{"images": [', '[]', '[' * 100_000, '{}'], ids=range(4))
def test_damaged_file_is_named(tmp_path, text):
    (tmp_path / 'a.json').write_text(text)
    with pytest.raises(UserError, match='a.json: '):
        read_table(tmp_path / 'a.json')


@pytest.mark.parametrize('year', ['2014', '2017'])
def test_missing_files_are_named(tmp_path, year):
    def told(message):
        with pytest.raises(UserError, match=message):
            open_part(tmp_path, 'val', year, squashed(8))

    told(f'no folder .*val{year}')
    (tmp_path / f'val{year}').mkdir()
    told(f'no annotation file .*instances_val{year}.json')
    write_json(tmp_path / 'annotations' / f'instances_val{year}.json', annotations())
    (tmp_path / f'val{year}' / '2.jpg').touch()
    told(rf'val{year}: 2 images of the annotation file are not there: 1\.jpg, 7\.jpg')


def test_workers_carry_arrays_and_nothing_of_the_annotations(tmp_path):
    value = annotations()
    value['annotations'] *= 1000
    few, many = (read_table(write_json(tmp_path / 'a.json', each)) for each in (annotations(), value))
    assert (type(many.files), type(many.present)) == (np.ndarray, np.ndarray)
    assert pickle.dumps(many) == pickle.dumps(few)
