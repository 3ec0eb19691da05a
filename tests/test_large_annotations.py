"""An annotation file of COCO's size: too slow for every run. `make test-all` prints time and memory."""

import json
import random
import resource
import time
from pathlib import Path

import pytest
from torch.utils.data import DataLoader, Dataset

from utils.coco import Table, read_table

IMAGES, ANNOTATIONS = 82_783, 600_000  # of instances_train2014.json


class Rows(Dataset):
    """The table's rows without their images."""

    def __init__(self, table: Table):
        self.table = table

    def __len__(self):
        return len(self.table.files)

    def __getitem__(self, index):
        return self.table.present[index], str(self.table.files[index])


def write_annotations(path):
    numbers = random.Random(0)
    value = {
        'images': [{'id': n, 'file_name': f'COCO_train2014_{n:012d}.jpg'} for n in range(IMAGES)],
        'categories': [{'id': c, 'name': f'class {c}'} for c in range(80)],
        'annotations': [
            {
                'id': n,
                'image_id': numbers.randrange(IMAGES),
                'category_id': numbers.randrange(80),
                'area': numbers.uniform(0, 20_000),
                'iscrowd': 0,
                'segmentation': [[round(numbers.uniform(0, 600), 2) for _ in range(numbers.choice((20, 40, 60, 80)))]],
            }
            for n in range(ANNOTATIONS)
        ],
    }
    path.write_text(json.dumps(value))


def proportional_megabytes(pid) -> float:
    """The memory of a process, what it shares divided by those who share it."""
    lines = Path(f'/proc/{pid}/smaps_rollup').read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith('Pss:')) / 1000


def of_all(table, workers) -> float:
    """Megabytes of this process and so many workers that have read everything once."""
    batches = iter(DataLoader(Rows(table), 64, num_workers=workers, multiprocessing_context='fork'))
    for _ in range(IMAGES // 64):
        next(batches)
    return sum(proportional_megabytes(pid) for pid in ('self', *(worker.pid for worker in batches._workers)))


@pytest.mark.slow
@pytest.mark.skipif(not Path('/proc/self/smaps_rollup').exists(), reason='memory is read as Linux tells it')
def test_a_second_worker_adds_little(tmp_path, capsys):
    write_annotations(tmp_path / 'a.json')
    start = time.perf_counter()
    table = read_table(tmp_path / 'a.json')
    seconds, peak = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000
    one, two = of_all(table, 1), of_all(table, 2)
    with capsys.disabled():
        size = (tmp_path / 'a.json').stat().st_size / 1e6
        print(f'\n{size:.0f} MB read in {seconds:.1f} s, peak {peak:.0f} MB; a second worker adds {two - one:.0f} MB')
    assert table.present.shape == (IMAGES, 3, 80)
    assert two - one < 100
