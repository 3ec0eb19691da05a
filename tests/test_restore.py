"""utils/restore.py: momentum in its place, transfer to another head, what does not fit and is told."""

import pytest
import torch

import models
import segment as segment_script
from models.norm import batch_norms
from tests.conftest import TinyNet
from tests.test_checkpoint import NET, released, trained
from utils import checkpoint
from utils.errors import UserError
from utils.restore import Identity, head_difference, load_optimizer, resume, transfer
from utils.trained import count_outputs


def test_momentum_is_placed_over_parameters_without_a_gradient(tmp_path):
    model, _ = trained()
    model.block.conv1_d.weight.requires_grad_(False).grad = None
    optimizer = torch.optim.SGD(model.parameters(), 0.1, 0.9)
    model(torch.randn(2, 3, 32, 32)).sum().backward()
    optimizer.state.clear()
    model.block.conv1_d.weight.grad = None
    optimizer.step()
    torch.save(released(model, optimizer), tmp_path / 'old')
    fresh, its_optimizer = trained()
    its_optimizer.state.clear()
    load_optimizer(fresh, its_optimizer, checkpoint.read(tmp_path / 'old'))
    assert fresh.block.conv1_d.weight not in its_optimizer.state
    own, saved = its_optimizer.state[fresh.fc.bias], optimizer.state[model.fc.bias]
    assert torch.equal(own['momentum_buffer'], saved['momentum_buffer'])


def test_learning_rate_and_weight_decay_stay_those_of_the_command_line(tmp_path):
    torch.save(released(*trained()), tmp_path / 'old')
    model, _ = trained()
    optimizer = torch.optim.SGD(model.parameters(), 0.03, 0.8, weight_decay=0.5)
    load_optimizer(model, optimizer, checkpoint.read(tmp_path / 'old'))
    group = optimizer.param_groups[0]
    assert (group['lr'], group['momentum'], group['weight_decay']) == (0.03, 0.8, 0.5)


def test_resume_lists_all_that_does_not_fit(tmp_path):
    model, _ = trained()
    state = model.state_dict()
    state['stranger'] = state.pop('bn3.bias')
    state['conv1.weight'] = state['conv1.weight'][:4]
    torch.save(state, tmp_path / 'bare')
    with pytest.raises(UserError) as error:
        resume(model, checkpoint.read(tmp_path / 'bare'))
    shapes = 'conv1.weight (4, 3, 3, 3) instead of (8, 3, 3, 3)'
    assert f'missing: bn3.bias; unexpected: stranger; of another shape: {shapes}' in str(error.value)


def test_transfer_leaves_exactly_the_head(tmp_path):
    model, _ = trained()
    torch.save(released(model, _), tmp_path / 'five')
    fresh, _ = trained(classes=3, seed=1)
    head = fresh.fc.weight.clone()
    assert transfer(fresh, checkpoint.read(tmp_path / 'five')) == ['fc']
    assert torch.equal(fresh.fc.weight, head)
    assert torch.equal(fresh.conv1.weight, model.conv1.weight)
    assert torch.equal(fresh.bn3.running_mean, model.bn3.running_mean)


def test_transfer_refuses_any_other_difference(tmp_path):
    model, _ = trained()
    state = model.state_dict()
    del state['bn3.bias']
    torch.save(state, tmp_path / 'bare')
    with pytest.raises(UserError, match='missing: bn3.bias'):
        transfer(model, checkpoint.read(tmp_path / 'bare'))


@pytest.mark.parametrize(
    'change, told',
    [
        ({'task': 'coco'}, 'its task is coco, not imagenet'),
        ({'classes': ['0', '1', 'x', '3', '4']}, 'its classes differ: x where the data has 2'),
        ({'classes': ['0', '1']}, 'it names 2 classes, not 5'),
        ({'task': 'imagenet', 'classes': list('01234')}, ''),
    ],
)
def test_head_difference(tmp_path, change, told):
    model, optimizer = trained()
    torch.save(released(model, optimizer) | change, tmp_path / 'file')
    assert head_difference(checkpoint.read(tmp_path / 'file'), model, NET) == told


def test_head_of_another_size_and_another_architecture(tmp_path):
    torch.save(released(*trained()), tmp_path / 'file')
    found = checkpoint.read(tmp_path / 'file')
    three = Identity('imagenet', 'tiny', list('abc'))
    assert head_difference(found, TinyNet(3), three) == 'its head has 5 classes, not 3'
    with pytest.raises(UserError, match='a checkpoint of tiny, not of --arch dla60x'):
        head_difference(found, TinyNet(5), Identity('imagenet', 'dla60x', list('abcde')))


def test_optimizer_that_does_not_fit_is_an_error(tmp_path):
    model, optimizer = trained()
    content = released(model, optimizer)
    content['optimizer']['param_groups'][0]['params'].pop()
    torch.save(content, tmp_path / 'file')
    with pytest.raises(UserError, match=r'optimizer of \d+ parameters, the net has \d+'):
        load_optimizer(model, optimizer, checkpoint.read(tmp_path / 'file'))
    content = released(model, optimizer)
    first = content['optimizer']['param_groups'][0]['params'][0]
    content['optimizer']['state'][first]['momentum_buffer'] = torch.zeros(2)
    torch.save(content, tmp_path / 'file')
    with pytest.raises(UserError, match=r'momentum 0 is \(2,\), its parameter \(8, 3, 3, 3\)'):
        load_optimizer(model, optimizer, checkpoint.read(tmp_path / 'file'))


@pytest.mark.parametrize(
    'saved, told',
    [
        ({'state': {}}, ' has no param_groups'),
        ({'state': {}, 'param_groups': [{}]}, r'.param_groups\[0\] has no params'),
        ({'state': {}, 'param_groups': [{'params': [None]}]}, r'.param_groups\[0\].params\[0\] is None, not the key'),
        ({'state': [], 'param_groups': [{'params': [0]}]}, '.state is a list, not a dict'),
        ({'state': {0: {'momentum_buffer': 'x'}}, 'param_groups': []}, '.state.0 is a dict, not the state of a param'),
        ([{}, {}], ' is a list, not a dict'),
    ],
)
def test_optimizer_of_another_form_is_an_error_where_it_is_needed(tmp_path, saved, told):
    model, optimizer = trained()
    torch.save(released(model, optimizer) | {'optimizer': saved}, tmp_path / 'file')
    found = checkpoint.read(tmp_path / 'file')
    resume(model, found)
    with pytest.raises(UserError, match=f'file: its optimizer{told}'):
        load_optimizer(model, optimizer, found)


def test_optimizer_of_what_was_trained_with_frozen_norms(tmp_path):
    """With --freeze_bn the reference gave its optimizer no batch norm's weight or bias."""
    model, _ = trained()
    norms = {parameter for norm in batch_norms(model) for parameter in norm.parameters()}
    others = [parameter for parameter in model.parameters() if parameter not in norms]
    optimizer = torch.optim.SGD(others, 0.1, 0.9)
    optimizer.step()
    torch.save(released(model, optimizer), tmp_path / 'frozen')
    fresh, _ = trained(seed=1)
    its_optimizer = torch.optim.SGD(fresh.parameters(), 0.1, 0.9)
    load_optimizer(fresh, its_optimizer, checkpoint.read(tmp_path / 'frozen'))
    assert len(its_optimizer.state) == len(others) < len(list(model.parameters()))
    names = dict(model.named_parameters())
    for name, parameter in fresh.named_parameters():
        if parameter in its_optimizer.state:
            own, saved = its_optimizer.state[parameter], optimizer.state[names[name]]
            assert torch.equal(own['momentum_buffer'], saved['momentum_buffer'])
        else:
            assert names[name] in norms


def test_frozen_segmenter_of_the_reference_has_145_of_387(tmp_path):
    model = models.build_segmenter('resnext50_elastic')
    optimizer = torch.optim.SGD(segment_script.parameter_groups(model, 1.0), 0.1, 0.9)
    saved = {'state': {}, 'param_groups': [{'params': list(range(140))}, {'params': list(range(140, 145))}]}
    saved['state'][144] = {'momentum_buffer': torch.arange(21.0)}
    saved['state'][0] = {'momentum_buffer': torch.ones(64, 3, 7, 7)}
    torch.save({'state_dict': {'w': torch.ones(1)}, 'optimizer': saved}, tmp_path / 'file')
    load_optimizer(model, optimizer, checkpoint.read(tmp_path / 'file'))
    assert sum(len(group['params']) for group in optimizer.param_groups) == 387
    assert torch.equal(optimizer.state[model.aspp.conv3.bias]['momentum_buffer'], torch.arange(21.0))
    assert optimizer.state[model.conv1.weight]['momentum_buffer'].all()


def test_head_without_dimensions_does_not_fit(tmp_path):
    model, optimizer = trained()
    state = {**model.state_dict(), 'fc.weight': torch.tensor(1.0), 'fc.bias': torch.tensor(1.0)}
    torch.save(released(model, optimizer) | {'state_dict': state}, tmp_path / 'file')
    found = checkpoint.read(tmp_path / 'file')
    assert head_difference(found, model, NET) == ''
    with pytest.raises(UserError, match=r'does not fit the net: of another shape: fc.weight \(\) instead of \(5, 16\)'):
        resume(model, found)
    assert count_outputs(found, TinyNet) == 1  # so that load_net comes as far as resume


@pytest.mark.parametrize('name, classes', [('resnext50_elastic', 1000), ('dla60x', 1000), ('dla60x', 8)])
def test_classifier_is_transferred(tmp_path, name, classes):
    torch.manual_seed(1)
    classifier, model = models.build_classifier(name, classes), models.build_segmenter(name)
    fresh = {key: value.clone() for key, value in model.state_dict().items()}
    content = {'epoch': 120, 'arch': name, 'state_dict': checkpoint.state_dict(classifier), 'best_err1': 21.6}
    torch.save(content, tmp_path / 'imagenet.pth.tar')
    left = transfer(model, checkpoint.read(tmp_path / 'imagenet.pth.tar'))
    prefix, taken = ('base.' if name == 'dla60x' else ''), classifier.state_dict()
    heads = ['dla_up', 'fc', 'up'] if prefix else ['aspp']
    assert left == (heads if classes == 1000 else [*heads, 'base.fc'])
    for key, value in model.state_dict().items():
        is_fresh = any(key.startswith(f'{module}.') for module in left)
        assert torch.equal(value, fresh[key] if is_fresh else taken[key.removeprefix(prefix)]), key


def test_segmenter_of_other_classes_is_transferred(tmp_path):
    model = models.build_segmenter('dla60x')
    torch.save(models.build_segmenter('dla60x', 20).state_dict(), tmp_path / 'twenty.pth')
    left = transfer(model, checkpoint.read(tmp_path / 'twenty.pth'))
    assert left == ['dla_up', 'fc', 'up']


def test_released_files_are_told_apart(segment, tmp_path, capsys):
    """Files of the reference name neither task nor, for VOC, the net."""
    torch.manual_seed(0)
    states = {
        'classifier': models.build_classifier('tiny').state_dict(),
        'other': models.build_classifier('dla60x').state_dict(),
        'twenty': models.build_segmenter('tiny', 20).state_dict(),
        'own': models.build_segmenter('tiny').state_dict(),
    }
    for name, state in states.items():
        wrapped = {f'module.{key}': value for key, value in state.items()}
        torch.save({'epoch': 50, 'state_dict': wrapped}, tmp_path / name)
    told = 'it holds no score, so it is of a classifier, or of another net'
    assert told in segment.error(capsys, '--resume', tmp_path / 'classifier')
    assert 'its head has 20 classes, not 21' in segment.error(capsys, '--resume', tmp_path / 'twenty')
    assert 'missing: ' in segment.error(capsys, '--train', '--resume', tmp_path / 'other')
    segment('--resume', tmp_path / 'own')
    assert 'Mean IoU' in capsys.readouterr().out
