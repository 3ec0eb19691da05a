"""Command lines of the four scripts: spellings of flags, values that stay as they are, numbers out of bounds."""

from importlib import import_module
from pathlib import Path
from unittest.mock import Mock

import pytest

from tests.runs import content
from utils import trainer

# What the scripts of 2019 were called with.
IMAGENET = (
    '--arch --workers --epochs --start-epoch --batch-size --lr --learning-rate --momentum --weight-decay --wd '
    '--print-freq --resume --evaluate --world-size --dist-url --dist-backend'
)
OF_2019 = {
    'classify': f'{IMAGENET} --num-gpus',
    'docker_classify': f'{IMAGENET} --rank --fp16 --static-loss-scale',
    'multilabel_classify': f'{IMAGENET} --num-gpus',
    'segment': '--train --exp --gpu --arch --dataset --epochs --batch-size --base-lr --last-mult --freeze-bn '
    '--crop-size --resume --workers',
}
PARSERS = {name: import_module(name).make_parser() for name in OF_2019}


def named_flags(parser):
    """--flag -> what it sets, of all but --help."""
    actions = [action for action in parser._actions if action.dest != 'help']
    return {flag: action for action in actions for flag in action.option_strings if flag.startswith('--')}


def parse(name, *given):
    """What a script reads from these arguments behind the one that it needs."""
    return PARSERS[name].parse_args(['--exp=x' if name == 'segment' else 'my_dir', *given])


@pytest.mark.parametrize('name', PARSERS)
def test_flags_of_2019_are_there_and_all_mean_the_same_in_both_spellings(name):
    flags = named_flags(PARSERS[name])
    assert set(OF_2019[name].split()) <= flags.keys()
    for flag, action in flags.items():
        choices = ['dla60x'] if flag == '--arch' else action.choices or ['57']
        value = [] if action.nargs == 0 else [choices[-1]]
        expected = parse(name, flag, *value)
        for spelt in flag, '--' + flag[2:].replace('-', '_'):
            assert parse(name, spelt, *value) == expected, spelt
            if value:
                assert parse(name, f'{spelt}={value[0]}') == expected, spelt


@pytest.mark.parametrize(
    'script, given, name, value',
    [
        ('segment', ['--exp=--my_exp'], 'exp', '--my_exp'),
        ('segment', ['--exp', '--my exp_2'], 'exp', '--my exp_2'),
        ('segment', ['--exp=x', '--res', 'my_file'], 'resume', Path('my_file')),
        ('segment', ['--exp=x', '--base_l=2'], 'base_lr', 2),
        ('classify', ['my_dir', '--l', '2'], 'lr', 2),  # --lr or --learning-rate
        ('classify', ['my_dir', '--resume', ''], 'resume', None),
        ('classify', ['--batch_size', '4', '--', '--my_dir'], 'data', Path('--my_dir')),
    ],
)
def test_beginnings_of_flags_and_values_as_they_are(script, given, name, value):
    assert getattr(PARSERS[script].parse_args(given), name) == value


OF_TEXT = '--arch', '--pretrained', '--exp', '--data', '--output', '--resume', '--dist-url'
OUT_OF_BOUNDS = 10**39, '9' * 400, -1, 'nan'  # of every number
BEYOND_ITS_OWN = {
    '--batch-size': (0,), '--image-size': (31, 2**31), '--crop-size': (32, 2**31), '--scales': ('1,0', '1,1e30'),
    '--seed': (2**63,), '--static-loss-scale': (0, 1e-300),
}  # fmt: skip


@pytest.mark.parametrize('name', PARSERS)
def test_number_out_of_bounds_is_told_in_a_line(name, capsys):
    for flag, action in named_flags(PARSERS[name]).items():
        if action.nargs == 0 or action.choices or flag in OF_TEXT:
            continue
        for value in *OUT_OF_BOUNDS, *BEYOND_ITS_OWN.get(flag, ()):
            with pytest.raises(SystemExit) as end:
                parse(name, flag, str(value))
            (line,) = capsys.readouterr().err.splitlines()
            assert end.value.code == 2
            assert 'argument ' in line and flag in line and ' value: ' in line


def test_largest_numbers_are_taken(undisturbed, classify, undrawn, tmp_path, monkeypatch):
    """Another seed is another run: other weights, another order."""
    largest, batches = 2**31 - 1, Mock(wraps=trainer.TrainBatchSampler)
    monkeypatch.setattr(trainer, 'TrainBatchSampler', batches)
    classify('--epochs', 1, '--seed', 2**63 - 1, '--dist-timeout', largest, '--output', tmp_path)
    classify('--epochs', 2, '--auto-resume', '--output', tmp_path)
    assert batches.call_args.args[2] == 2**63 - 1
    other = content(undisturbed('classify').folder)
    assert not any(value.equal(other[name]) for name, value in content(tmp_path).items() if name.endswith('weight'))
