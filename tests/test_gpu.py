"""What matters on GPUs, proven without one: by fake CUDA tensors, recorded operations, a thread as DataParallel's."""

import threading
from types import SimpleNamespace

import pytest
import torch
from torch._subclasses import FakeTensorMode
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode

import classify as script
import multilabel_classify
import segment as segmentation
from models.deeplab import DeepLab
from tests.conftest import TinyNet
from utils import compute as engine
from utils import data
from utils.compute import Compute
from utils.confusion import ConfusionMatrix
from utils.finite import FiniteLoss
from utils.learner import Learner
from utils.metrics import TopErrors
from utils.multilabel import MultiLabelScores, multilabel_loss
from utils.segmentation import SegmentationScores, segmentation_loss
from utils.voc import CLASSES, Target

GPU = torch.device('cuda')


class Dtypes(TorchDispatchMode):
    """Notes the type of the first argument of the operations called so."""

    def __init__(self, name):
        super().__init__()
        self.name, self.found = name, []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation.name().startswith(f'aten::{self.name}'):
            self.found.append(args[0].dtype)
        return operation(*args, **(kwargs or {}))


def learner_of(model, amp='off'):
    compute = Compute('cpu', amp)
    return Learner(model, compute.runner(model, train=True), cross_entropy, compute, None, None)


def test_segmenters_resize_in_float32_forth_and_back():
    torch.manual_seed(0)
    learner = learner_of(DeepLab((1, 1, 1), 3), 'bf16')
    with Dtypes('upsample_bilinear2d') as resized, Dtypes('convolution') as convolved:
        outputs = learner.runner(torch.randn(2, 3, 17, 17))
        outputs.sum().backward()
    assert resized.found == [torch.float32] * 2  # the scores, and their gradients
    assert set(convolved.found) == {torch.bfloat16}


@pytest.mark.parametrize('amp, dtype', [('off', torch.float32), ('bf16', torch.bfloat16)])
def test_nets_cast_by_themselves_in_threads_that_know_nothing_of_it(amp, dtype):
    learner, results = learner_of(TinyNet(3), amp), []
    learner.model.conv1.register_forward_hook(lambda module, inputs, output: results.append(output.dtype))
    threads = [threading.Thread(target=learner.runner, args=(torch.randn(2, 3, 32, 32),)) for _ in range(2)]
    for thread in threads:
        thread.start()
        thread.join()
    assert results == [dtype] * 2
    outputs, loss = learner.forward(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert outputs.dtype == loss.dtype == torch.float32


@pytest.mark.parametrize('device, pinned, waits', [('cuda', True, False), ('cuda', False, True), ('mps', True, True)])
def test_copies_do_not_wait_only_from_pinned_memory_to_cuda(device, pinned, waits):
    compute, told = Compute('cpu'), {}
    compute.device = torch.device(device)
    tensor = SimpleNamespace(is_pinned=lambda: pinned, to=lambda place, **options: told.update(options, place=place))
    compute.copied(tensor)
    assert told == {'place': compute.device, 'non_blocking': not waits}


@pytest.fixture
def two_gpus(monkeypatch):
    """Two GPUs as far as can be told without one; a list of those made the current one."""
    chosen = []
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: f'card {device}')
    benchmark, tf32 = torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32
    yield chosen
    torch.backends.cudnn.benchmark, torch.backends.cudnn.allow_tf32 = benchmark, tf32
    torch.backends.cuda.matmul.allow_tf32 = False


@pytest.mark.parametrize('amp, tf32', [('off', False), ('tf32', True), ('bf16', False)])
def test_a_numbered_gpu_is_the_current_one_and_float32_is_what_was_asked_for(two_gpus, amp, tf32):
    compute = Compute('cuda:1', amp)
    assert two_gpus == [torch.device('cuda:1')]
    assert (compute.name, compute.devices) == ('card cuda:1', 1)
    assert torch.backends.cudnn.benchmark
    for part in torch.backends.cuda.matmul, torch.backends.cudnn.conv:
        assert (part.fp32_precision == 'tf32') is tf32
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))  # which looks at the older names
    assert Compute('cuda', amp).devices == 2


def test_tf32_is_of_gpus_alone(classify, capsys):
    assert '--amp tf32 needs a GPU of NVIDIA' in classify.error(capsys, '--amp', 'tf32')


def test_only_batches_to_test_on_may_vary_for_the_compiler(monkeypatch):
    marked, learner = [], learner_of(TinyNet(3))
    monkeypatch.setattr(torch._dynamo, 'maybe_mark_dynamic', lambda images, dimension: marked.append(dimension))
    learner.compute.compile = True
    learner.forward(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert marked == []
    monkeypatch.setattr(torch, 'compile', lambda module: module)
    learner.tester()(torch.randn(2, 3, 32, 32))
    assert marked == [0]


@pytest.mark.parametrize('module, arguments', [
    (script, ['{folder}', '-a', 'tiny']),
    (segmentation, ['--exp=x', '--train', '-a', 'tiny', '--data', '{devkit}', '--freeze-bn']),
])  # fmt: skip
def test_scripts_ask_for_the_fused_optimizer_on_gpus(module, arguments, folder, devkit, tiny, monkeypatch):
    args = module.make_parser().parse_args([part.format(folder=folder, devkit=devkit) for part in arguments])
    make_task = getattr(module, 'training', None) or module.make_task
    for there in True, False:
        monkeypatch.setattr(module, 'on_gpu', lambda name, there=there: there)
        assert make_task(args).optimizer.defaults['fused'] is there
    assert multilabel_classify.on_gpu is engine.on_gpu
    assert not engine.on_gpu('cpu')


def test_the_fused_optimizer_updates_as_the_plain_one():
    nets = []
    for fused in False, True:
        torch.manual_seed(0)
        net = TinyNet(3).double()
        optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9, weight_decay=1e-2, fused=fused)
        for _ in range(5):
            optimizer.zero_grad()
            net(torch.randn(4, 3, 16, 16, dtype=torch.float64)).square().sum().backward()
            optimizer.step()
        nets.append(net.state_dict())
    torch.testing.assert_close(nets[1], nets[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize('processes, asked, workers', [(1, 16, 8), (4, 16, 2), (4, 1, 1), (16, 3, 1), (4, 0, 0)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, processes, asked, workers):
    monkeypatch.setattr(data, 'available_cores', lambda: 8)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    loader = data.DeviceLoader([0], SimpleNamespace(seed=0), Compute('cpu'), asked).loader
    assert (loader.num_workers, loader.persistent_workers) == (workers, False)  # those of other sets have ended


def test_processes_exchange_gradients_where_they_are(monkeypatch):
    told = {}
    monkeypatch.setattr(engine, 'is_distributed', lambda: True)
    monkeypatch.setattr(engine, 'DistributedDataParallel', lambda net, **options: told.update(options))
    Compute('cpu').runner(TinyNet(3), train=True)
    assert told['gradient_as_bucket_view'] is True


def measures():
    """Of each task: metrics, loss, outputs and targets, on a GPU that is not there."""
    numbers = torch.zeros(4, 9, device=GPU)
    labels = torch.zeros(4, dtype=torch.int64, device=GPU)
    objects = torch.zeros(4, 3, 9, dtype=torch.bool, device=GPU)
    maps = torch.zeros(2, 21, 5, 5, device=GPU)
    target = Target(torch.zeros(2, 5, 5, dtype=torch.uint8, device=GPU), torch.zeros(2, dtype=torch.int64, device=GPU))
    scores = SegmentationScores(GPU, CLASSES, 2, None)
    scores.confusion = ConfusionMatrix(GPU, CLASSES)
    yield TopErrors(GPU), cross_entropy, numbers, labels
    yield MultiLabelScores(GPU, list('abcdefghi')), multilabel_loss, numbers, objects
    yield scores, segmentation_loss, maps, target


def test_no_metric_waits_for_a_batch(monkeypatch):
    """Fake tensors have no values: whatever would wait for one raises an error."""
    monkeypatch.setattr('utils.segmentation.HostCopy', lambda tensor: tensor)
    with FakeTensorMode():
        finite = FiniteLoss(GPU)
        for metrics, loss, outputs, targets in measures():
            value = loss(outputs, targets)
            finite.note(value, 0, 1)
            metrics.update(value, outputs, targets)


def test_masks_are_written_while_the_next_batch_is_computed():
    kept = []
    scores = SegmentationScores(torch.device('cpu'), CLASSES, 3, lambda masks, index: kept.append((len(masks), index)))
    for number in range(3):
        labels = torch.full((1, 4, 4), number, dtype=torch.uint8)
        outputs = torch.nn.functional.one_hot(labels.long(), 21).permute(0, 3, 1, 2).float()
        scores.update(torch.tensor(0.0), outputs, Target(labels, torch.tensor([number])))
        assert kept == [(1, [n]) for n in range(number)]
    assert scores.compute()['present'] == 3
    assert kept == [(1, [0]), (1, [1]), (1, [2])]
