"""VOC's lists, masks and joint transforms, the loss, and testing at several scales."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps

from tests.pictures import SIZES, STEP, scene
from utils.batches import EvalBatches, TrainBatches
from utils.compute import Compute
from utils.confusion import IGNORED
from utils.data import MEAN, STD, DeviceLoader, Seeded
from utils.errors import UserError
from utils.joint_transforms import CentredScene, RandomScene
from utils.multiscale import MultiScale
from utils.schedules import poly
from utils.segmentation import RunningLoss, segmentation_loss
from utils.voc import Scenes, Target, groups_of_one_size, open_scene, open_scenes


@pytest.mark.parametrize('height, width', SIZES)
def test_test_images_are_centred_in_513_pixels_or_the_next_16n_plus_1(height, width):
    picture, mask = scene(height, width)
    image, labels = CentredScene(513)(picture, mask)
    rows, columns = image.shape[1:]
    for whole, side in (rows, height), (columns, width):
        assert whole == 513 if side <= 513 else (whole % 16 == 1 and side <= whole < side + 16)
    top, left = (rows - height) // 2, (columns - width) // 2
    inner = np.s_[top : top + height, left : left + width]
    assert image[:3].permute(1, 2, 0)[inner].numpy().tobytes() == picture.tobytes()
    assert labels[inner].numpy().tobytes() == mask.tobytes()
    assert image[3][inner].all()
    assert image[3].sum() == height * width
    assert (labels == IGNORED).sum() == rows * columns - height * width


def test_what_was_padded_is_zero_after_normalising(tmp_path):
    picture, mask = scene(5, 7)
    picture.save(tmp_path / 'a.png')
    mask.save(tmp_path / 'a_mask.png')
    scenes = Scenes([tmp_path / 'a.png'], [tmp_path / 'a_mask.png'], CentredScene(17))
    ((images, targets),) = DeviceLoader(scenes, EvalBatches([[0]], 4), Compute('cpu'), 0)
    expected = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
    expected = (expected - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    expected = F.pad(expected, (5, 5, 6, 6))
    torch.testing.assert_close(images[0], expected)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert (targets.index.tolist(), targets.labels.dtype) == ([0], torch.uint8)


def drawn(transform, height, width, times, cell=40):
    """What the transform makes of one scene in so many epochs."""

    class One:
        def __getitem__(self, _):
            return transform(*scene(height, width, cell=cell))

    return [Seeded(One(), 0)[epoch, 0] for epoch in range(times)]


def test_image_and_mask_stay_together():
    for image, labels in drawn(RandomScene(129), 200, 300, 30):
        assert (image.shape, labels.shape, labels.dtype) == ((4, 129, 129), (129, 129), torch.uint8)
        inside = image[3] == 1
        assert ((labels == IGNORED) == ~inside).all()
        told = (image[0].float() / STEP).round()
        assert (told == labels)[inside].double().mean() > 0.85  # Lanczos blurs borders
        assert not image[:3, ~inside].any()


def test_scales_are_log_uniform_from_half_to_double_and_half_is_flipped():
    shapes = [image[3].sum(0).max().item() / 100 for image, _ in drawn(RandomScene(250), 100, 100, 300)]
    logarithms = np.log2(shapes)
    assert np.histogram(logarithms, 4, (-1, 1))[0].sum() == 300
    assert (np.abs(np.histogram(logarithms, 4, (-1, 1))[0] - 75) < 25).all()
    first = drawn(RandomScene(250), 100, 100, 300, cell=100 // 2)
    corners = [labels[image[3] == 1][0].item() for image, labels in first]
    left = np.asarray(scene(100, 100, cell=50)[1])[0, 0]
    assert 100 < sum(corner == left for corner in corners) < 200


def test_crops_of_a_large_image_come_from_everywhere():
    whole = np.arange(200, dtype=np.uint8)[:, None].repeat(200, 1)
    mask = Image.fromarray(np.zeros_like(whole))
    picture = Image.fromarray(whole).convert('RGB')

    class One:
        def __getitem__(self, _):
            return RandomScene(50)(picture, mask)

    tops = [Seeded(One(), 0)[epoch, 0][0][0, 0, 0].item() for epoch in range(200)]
    assert min(tops) < 10
    assert max(tops) > 150


@pytest.mark.parametrize('height, width', [(20, 31), (64, 65), (66, 300), (200, 90)])
def test_crops_are_those_of_the_scaled_image_padded_by_half_of_what_it_lacks_on_each_side(height, width):
    """Built whole in NumPy: flip, resize, pad by max(0, int((1 + crop - side) / 2)) on both ends, cut."""
    size, offsets = 65, set()
    for seed in range(30):
        torch.manual_seed(seed)
        image, labels = RandomScene(size)(*scene(height, width, cell=4))
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
        offsets |= {(side < size, side % 2, offset) for side, offset in ((high, top), (wide, left))}
    even, odd = ({offset for small, rest, offset in offsets if small and rest == parity} for parity in (1, 0))
    assert even <= {0}
    assert odd <= {0, 1}


def test_single_image_at_the_end_is_dropped_where_it_cannot_be_trained_on():
    assert len(TrainBatches(10582, 16, 0, smallest=2)) == 662
    assert [len(TrainBatches(n, 16, 0, smallest=2)) for n in (32, 33, 34)] == [2, 2, 3]
    assert [len(TrainBatches(n, 16, 0, smallest=1)) for n in (32, 33)] == [2, 3]
    assert [len(batch) for batch in TrainBatches(34, 16, 0, smallest=2)] == [16, 16, 2]


def test_last_batch_is_left_out_if_data_parallel_would_cut_single_images_from_it():
    lengths = [len(TrainBatches(16 + rest, 16, 0, smallest=2, devices=4)) for rest in range(16)]
    smallest = [min(map(len, torch.arange(rest).chunk(4))) for rest in range(16)]
    assert lengths == [1 + (part >= 2) for part in smallest]
    assert smallest[5] == 1  # 2, 2 and 1


def test_images_of_one_size_share_batches():
    groups = groups_of_one_size([(5, 5), (5, 9), (5, 5), (5, 5), (9, 5), (5, 9)])
    assert groups == [[0, 2, 3], [1, 5], [4]]
    batches = EvalBatches(groups, 2)
    assert [[index for _, index in batch] for batch in batches] == [[0, 2], [3], [1, 5], [4]]
    assert len(batches) == 4


def test_poly_schedule_counts_iterations():
    steps, epochs = 662, 50
    for epoch, step in (0, 0), (0, 1), (17, 300), (49, 661):
        expected = 0.007 * (1 - (epoch * steps + step) / (steps * epochs)) ** 0.9
        assert poly(0.007, epoch + step / steps, epochs) == pytest.approx(expected, rel=1e-9)


def test_loss_is_the_mean_over_pixels_that_count():
    random = np.random.RandomState(0)
    outputs = torch.tensor(random.randn(2, 21, 6, 5))
    labels = torch.tensor(random.randint(0, 21, (2, 6, 5)).astype(np.uint8))
    labels[:, :2] = IGNORED
    targets = Target(labels, torch.arange(2))
    expected = F.nll_loss(outputs.log_softmax(1), labels.long(), ignore_index=IGNORED)
    assert segmentation_loss(outputs, targets).item() == pytest.approx(expected.item())
    assert segmentation_loss(outputs.log_softmax(1), targets).item() == pytest.approx(expected.item())
    nothing = Target(torch.full_like(labels, IGNORED), torch.arange(2))
    assert segmentation_loss(outputs, nothing) == 0


def test_running_loss_is_an_exponential_average_that_goes_on_from_a_saved_state():
    losses, targets, outputs = [4.0, 2.0, 1.0], Target(None, None), torch.zeros(2, 1)
    running, resumed = (RunningLoss(torch.device('cpu')) for _ in range(2))
    for loss in losses[:2]:
        running.update(torch.tensor(loss), outputs, targets)
    assert running.progress() == 'loss: 2.0000 (3.9800)'
    resumed.load_state_dict(running.state_dict())
    for metrics in running, resumed:
        metrics.update(torch.tensor(losses[2]), outputs, targets)
        assert metrics.progress() == f'loss: 1.0000 ({0.99 * 3.98 + 0.01:.4f})'
        assert metrics.compute() == {'loss': pytest.approx(7 / 3)}


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


def test_lists(tmp_path):
    with pytest.raises(UserError, match='no list .*val.txt'):
        open_scenes(tmp_path, 'val.txt', CentredScene(9))
    (tmp_path / 'list').mkdir()
    path = tmp_path / 'list' / 'val.txt'
    for text, told in (
        ('', 'val.txt: empty; lines must have the form'),
        ('\n  \n', 'val.txt: empty'),
        ('/a.jpg\n', 'val.txt: /a.jpg; lines must have the form /JPEGImages/x.jpg'),
        ('/a.jpg /a.png\n', 'names 2 files that are not there: .*a.jpg, .*a.png'),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=told):
            open_scenes(tmp_path, 'val.txt', CentredScene(9))
    path.write_bytes(b'/JPEGImages/\xff.jpg /SegmentationClassAug/\xff.png')
    with pytest.raises(UserError, match=f'cannot read {path}: .*utf-8'):
        open_scenes(tmp_path, 'val.txt', CentredScene(9))


@pytest.mark.parametrize(
    'mask, told',
    [
        (Image.new('L', (8, 7)), 'mask.png is 8 x 7 pixels, its image 8 x 6'),
        (Image.new('L', (8, 6), 77), 'mask.png: label 77; labels go from 0 to 20, and 255'),
        (Image.new('RGB', (8, 6)), 'mask.png: a mask is a palette or grey picture.*RGB'),
        (None, 'cannot read mask .*mask.png'),
    ],
)
def test_wrong_mask_is_named(tmp_path, mask, told):
    Image.new('RGB', (8, 6)).save(tmp_path / 'image.png')
    (tmp_path / 'mask.png').write_bytes(b'') if mask is None else mask.save(tmp_path / 'mask.png')
    with pytest.raises(UserError, match=told):
        open_scene(tmp_path / 'image.png', tmp_path / 'mask.png')


def test_labels_21_to_254_are_wrong_and_255_is_not(tmp_path):
    Image.new('RGB', (2, 1)).save(tmp_path / 'image.png')
    for label in 20, 21, 254, 255:
        Image.new('L', (2, 1), label).save(tmp_path / 'mask.png')
        if label in (20, 255):
            open_scene(tmp_path / 'image.png', tmp_path / 'mask.png')
        else:
            with pytest.raises(UserError, match=f'label {label};'):
                open_scene(tmp_path / 'image.png', tmp_path / 'mask.png')
