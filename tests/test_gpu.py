"""What matters on GPUs, proven without one: by fake CUDA tensors and noted calls."""

from functools import partial
from types import SimpleNamespace
from unittest.mock import create_autospec

import pytest
import torch
import torch.nn.functional as F
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import models.elastic
import models.fused
from data.voc import CLASSES
from models.deeplab import DeepLab
from models.recompute import frozen_statistics
from models.resnext import ResNeXt
from tests.conftest import TinyNet
from tools.check_gpu.ways import fused_sgd_is_plain
from utils import loader as data
from utils.device import Compute
from utils.metrics import TopKError
from utils.multilabel import MultiLabelScores, multilabel_loss
from utils.run import FiniteLoss
from utils.segmentation import SegmentationScores, Target, segmentation_loss
from utils.step import TrainingStep
from utils.trainer import Trainer

GPU = torch.device('cuda')


def test_segmenters_resize_in_float32(monkeypatch):
    net, dtypes, resize = DeepLab((1, 1, 1), 3), [], F.interpolate
    net.aspp.register_forward_hook(lambda module, inputs, scores: dtypes.append(scores.dtype))
    monkeypatch.setattr(F, 'interpolate', lambda x, *how, **named: dtypes.append(x.dtype) or resize(x, *how, **named))
    Compute('cpu', 'bf16').runner(net, train=True)(torch.randn(2, 3, 17, 17))
    assert dtypes == [torch.bfloat16, torch.float32]


def test_outputs_and_losses_are_float32_whatever_the_net_computes_in():
    net = TinyNet(3)
    training_step = TrainingStep(net, F.cross_entropy, Compute('cpu', 'bf16'), torch.optim.SGD(net.parameters()))
    outputs, loss = training_step.forward(torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert outputs.dtype == loss.dtype == torch.float32


@pytest.mark.parametrize('device, pinned, waits', [('cuda', True, False), ('cuda', False, True), ('mps', True, True)])
def test_copies_do_not_wait_only_from_pinned_memory_to_cuda(device, pinned, waits):
    compute, told = Compute('cpu'), {}
    compute.device = torch.device(device)
    tensor = SimpleNamespace(is_pinned=lambda: pinned, to=lambda place, **options: told.update(options, place=place))
    compute.copied(tensor)
    assert told == {'place': compute.device, 'non_blocking': not waits}


@pytest.mark.parametrize('amp, tf32', [('off', False), ('tf32', True), ('bf16', False)])
def test_a_numbered_gpu_is_the_current_one_and_float32_is_what_was_asked_for(monkeypatch, request, amp, tf32):
    """With two GPUs as far as can be told without one."""
    chosen, products, convolutions = [], torch.backends.cuda.matmul, torch.backends.cudnn.conv
    settings = (torch.backends.cudnn, 'benchmark'), (torch.backends.cudnn, 'allow_tf32'), (products, 'allow_tf32')
    for place, name in settings:
        request.addfinalizer(partial(setattr, place, name, getattr(place, name)))
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', chosen.append)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda device=None: f'card {device}')
    compute = Compute('cuda:1', amp)
    assert chosen == [torch.device('cuda:1')]
    assert (compute.name, compute.devices) == ('card cuda:1', 1)
    assert torch.backends.cudnn.benchmark
    for part in products, convolutions:
        assert (part.fp32_precision == 'tf32') is tf32
    torch.export.export(torch.nn.Linear(2, 2), (torch.zeros(1, 2),))  # which looks at the older names
    assert Compute('cuda', amp).devices == 2
    assert not torch.backends.cudnn.benchmark  # what DataParallel's threads have found ends with them


@pytest.mark.parametrize('device, layout', [('cpu', 'contiguous'), ('cuda', 'channels-last')])
def test_scripts_compute_as_asked_and_on_gpus_by_fused_sgd(classify, multilabel, segment, monkeypatch, device, layout):
    fit, gpu = create_autospec(Trainer.fit), SimpleNamespace(compute=SimpleNamespace(device=torch.device(device)))
    monkeypatch.setattr(Trainer, 'on_gpu', Trainer.on_gpu.fget(gpu))
    monkeypatch.setattr(Trainer, 'fit', fit)
    for called, flags in (classify, []), (multilabel, []), (segment, ['--train', '--freeze-bn']):
        called(*flags, *['--no-channels-last'] * (layout == 'contiguous'), '--compile', '--amp', 'bf16')
    for trainer, optimizer, *_ in (call.args for call in fit.mock_calls):
        assert str(trainer.compute) == f'cpu, bfloat16, {layout}, compiled'
        assert next(trainer.model.parameters()).is_contiguous() is (layout == 'contiguous')
        assert optimizer.defaults['fused'] is (device == 'cuda')
    assert fit.call_count == 3


@pytest.mark.parametrize('processes, asked, workers', [(1, 16, 8), (4, 16, 2), (4, 1, 1), (16, 3, 1), (4, 0, 0)])
def test_processes_of_a_machine_share_its_cores(monkeypatch, processes, asked, workers):
    monkeypatch.setattr(data, 'available_cores', lambda: 8)
    monkeypatch.setenv('LOCAL_WORLD_SIZE', str(processes))
    loader = data.DeviceLoader([0], SimpleNamespace(seed=0), Compute('cpu'), asked).loader
    assert (loader.num_workers, loader.persistent_workers) == (workers, False)  # those of other sets have ended


def test_processes_exchange_gradients_once_per_update(monkeypatch):
    monkeypatch.setattr('utils.step.world_size', lambda: 2)
    net = TinyNet(3)
    training_step = TrainingStep(net, None, Compute('cpu'), torch.optim.SGD(net.parameters()), accum_steps=3)
    training_step.runner = SimpleNamespace(no_sync=lambda: 'not exchanged')
    assert [training_step.no_sync(step) == 'not exchanged' for step in range(6)] == [True, True, False] * 2


def test_a_first_update_that_overflows_leaves_no_trace(request):
    """What PyTorch's fused SGD does not fill is no number here, where on GPUs it is whatever was in memory."""
    request.addfinalizer(lambda: torch.use_deterministic_algorithms(False))
    torch.use_deterministic_algorithms(True)
    assert fused_sgd_is_plain(torch.device('cpu')).holds


def test_what_cuda_graphs_return_is_added_to_memory_of_our_own(monkeypatch):
    """Each micro-batch overwrites what the one before returned."""
    monkeypatch.setattr(Compute, 'captures', True)
    net = TinyNet(3)
    training_step = TrainingStep(net, F.cross_entropy, Compute('cpu'), torch.optim.SGD(net.parameters(), 0.1), 2)
    own = [parameter.grad for parameter in net.parameters()]
    for step in range(2):
        training_step(step, torch.randn(2, 3, 32, 32), torch.tensor([0, 1]))
    assert all(gradient.any() for gradient in own)
    training_step.optimizer_step(0.1)
    assert all(parameter.grad is gradient for parameter, gradient in zip(net.parameters(), own, strict=True))
    assert not any(gradient.any() for gradient in own)


@pytest.mark.parametrize(
    ('device', 'gpus', 'job', 'graphs'),
    [
        ('cuda', 1, False, True),
        ('cuda', 2, False, False),
        ('cuda:1', 2, False, True),
        ('cuda', 1, True, False),
        ('cpu', 0, False, False),
    ],
)
def test_compiled_training_steps_of_one_gpu_are_cuda_graphs(monkeypatch, device, gpus, job, graphs):
    modes, compute = [], Compute('cpu', compile=True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: gpus)
    monkeypatch.setattr('utils.device.is_distributed', lambda: job)
    monkeypatch.setattr('utils.device.DistributedDataParallel', lambda net, **_: net)
    monkeypatch.setattr(torch.nn, 'DataParallel', lambda net: net)
    monkeypatch.setattr(torch, 'compile', lambda net, mode: modes.append(mode))
    compute.device = torch.device(device)
    for train in True, False:
        compute.runner(TinyNet(3), train)
    assert modes == ['reduce-overhead' if graphs else None, None]


def test_elastic_blocks_are_summed_jointly_on_gpus_in_half_precision_and_resized_outside_of_autocast(monkeypatch):
    block, contexts, autocast = TinyNet(3).block, [], torch.autocast
    monkeypatch.setattr(block, 'joint_sum', lambda x: 'joint')
    monkeypatch.setattr(torch, 'autocast', lambda *a, **k: contexts.append((a, k)) or autocast('cpu', enabled=False))
    with FakeTensorMode(), GPU:
        assert block.branch_sum(torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16)) == 'joint'
        models.elastic.up(torch.zeros(1, 8, 4, 4, dtype=torch.bfloat16), (8, 8))
    assert contexts == [(('cuda',), {'enabled': False})]


def test_in_half_precision_gpus_add_and_clip_inside_convolutions(monkeypatch):
    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
            if operator is torch.ops.elastic.conv_relu.default:
                calls.append(args[3])
            return operator(*args, **kwargs or {})

    calls = []
    monkeypatch.setattr(models.fused, 'relus_in_convs', lambda device: device.type == 'cuda')
    with torch.device('meta'):
        net = ResNeXt((2, 1, 1, 1), 9, elastic=True)
    with FakeTensorMode(), GPU:
        for tensors in (part for module in net.modules() for part in (module._parameters, module._buffers)):
            shapes = {name: value.shape for name, value in tensors.items() if value is not None}
            tensors |= {name: torch.empty(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}
        tested, images = models.fused.fuse(net.eval()), torch.zeros(2, 3, 65, 65, dtype=torch.bfloat16)
        with Noting():
            outputs = tested(images)
    assert (outputs.shape, outputs.dtype) == ((2, 9), torch.bfloat16)
    # The stem; of two blocks at two scales and of three at one, whose halves are joined, conv1 and conv2; every conv3.
    assert [sum(other is None for other in calls), sum(other is not None for other in calls)] == [1 + 2 * 4 + 3 * 2, 5]


def test_recomputation_goes_with_synchronized_batch_norms():
    with FakeTensorMode(), GPU:
        norm = torch.nn.SyncBatchNorm(3)
        with frozen_statistics(norm):
            norm(torch.zeros(2, 3, 4, 4))


def test_no_metric_waits_for_a_batch(monkeypatch):
    """Fake tensors have no values: whatever would wait for one, on a GPU that is not there, raises an error."""
    monkeypatch.setattr('utils.segmentation.HostCopy', lambda tensor: tensor)
    with FakeTensorMode(), GPU:
        numbers, labels, objects = torch.zeros(4, 9), torch.zeros(4).long(), torch.zeros(4, 3, 9).bool()
        maps, masks = torch.zeros(4, 21, 5, 5), Target(torch.zeros(4, 5, 5).byte(), labels)
        finite = FiniteLoss(GPU)
        for metrics, loss, outputs, targets in [
            (TopKError(GPU), F.cross_entropy, numbers, labels),
            (MultiLabelScores(GPU, list('abcdefghi')), multilabel_loss, numbers, objects),
            (SegmentationScores(GPU, CLASSES, 4, None), segmentation_loss, maps, masks),
        ]:
            value = loss(outputs, targets)
            finite.note(value, 1)
            metrics.update(value, outputs, targets)
