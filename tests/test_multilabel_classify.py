"""multilabel_classify.py on a small set in COCO's layout: printed lines, log, evaluation, the sheet of predictions."""

import json
import re

import numpy as np
from PIL import Image

from data.coco import open_part, squashed
from tests.conftest import Script
from tests.runs import LAST_OF_COCO as LAST
from tests.runs import PAIR, epochs
from tools import prediction_sheet
from utils.multilabel import NAMES


def test_printed_lines_have_the_form_of_the_reference(undisturbed):
    out, rate = '\n'.join(undisturbed('multilabel_classify').lines), r'\d+\.\d{2} \(\d+\.\d{2}\)'
    measures = rf'Loss \d+\.\d{{4}} \(\d+\.\d{{4}}\)\tPrecision {rate}\tRecall {rate}'
    results = ' '.join(rf'{name} \d+\.\d\d' for name in NAMES)
    train = re.findall(rf'^Epoch: \[\d\]\[\d/6\]\tTime {PAIR}\tData {PAIR}\t{measures}\n{results}$', out, re.M)
    test = re.findall(rf'^Test: \[\d/3\]\tTime {PAIR}\t{measures}\n{results}$', out, re.M)
    sizes = r'Recall small \d+\.\d\d medium \d+\.\d\d large \d+\.\d\d'
    ends = re.findall(rf'^ \* {results}\n   mAP \d+\.\d\d \(\d classes absent\) {sizes}$', out, re.M)
    assert (len(train), len(test), len(ends)) == (4, 2, 2)


def test_evaluation_prints_what_training_printed_and_the_log_has_a_row_per_class(undisturbed, multilabel, capsys):
    run = undisturbed('multilabel_classify')
    multilabel('--evaluate', '--resume', run.folder / LAST)
    assert capsys.readouterr().out.splitlines()[-2:] == run.lines[-2:]
    assert [row['class'] for row in epochs(run.folder)[-1]['val']['classes']] == ['ant', 'bee', 'cow']


def test_what_is_wrong_with_a_set_is_told(undisturbed, multilabel, coco, capsys):
    assert 'no folder' in multilabel.error(capsys, '--year', 2017)
    (coco / 'train2014' / 'train_3.png').unlink()
    assert 'train2014: 1 images of the annotation file are not there: train_3.png' in multilabel.error(capsys)
    path = coco / 'annotations' / 'instances_val2014.json'
    value = json.loads(path.read_text())
    value['categories'].append({'id': 9, 'name': 'dog'})
    path.write_text(json.dumps(value))
    source = undisturbed('multilabel_classify').folder / LAST
    assert 'its head has 3 classes, not 4' in multilabel.error(capsys, '--evaluate', '--resume', source)
    (coco / 'train2014' / 'train_3.png').touch()
    assert 'train and val must have the same classes; only one has dog' in multilabel.error(capsys)


def test_sheet_of_predictions(undisturbed, coco, tiny, tmp_path, capsys, monkeypatch):
    net = undisturbed('multilabel_classify').folder / LAST
    sheet = Script(prediction_sheet, net, f'{coco} {tmp_path}/sheet.png --image-size 32')
    sheet('--images', 7)
    with Image.open(tmp_path / 'sheet.png') as picture:
        assert picture.size[0] > 500
    data = open_part(coco, 'val', '2014', squashed(32))
    args = prediction_sheet.make_parser().parse_args([*sheet.shared, '--images', '7'])
    few, everything = (prediction_sheet.predict(args, data, places) for places in (np.array([0, 4]), np.arange(9)))
    np.testing.assert_allclose(few, everything[[0, 4]], rtol=1e-5)
    (tmp_path / 'folder.png').mkdir()
    monkeypatch.setattr(prediction_sheet, 'predict', None)  # told before
    elsewhere = Script(prediction_sheet, net, f'{coco} {tmp_path}/folder.png')
    assert elsewhere.error(capsys) == f'error: cannot write {tmp_path}/folder.png: it is a folder'
    assert '--image-size: invalid' in sheet.error(capsys, '--image-size', 31)
    assert 'no folder' in Script(prediction_sheet, net, f'{tmp_path} out.png').error(capsys)
