"""Command lines of the four scripts: flags in both spellings and abbreviated, values as they are, numbers too large."""

from pathlib import Path

import pytest

import classify as classify_script
import docker_classify
import multilabel_classify
import segment

SCRIPTS = {script.__name__: script for script in (classify_script, docker_classify, multilabel_classify, segment)}
NEEDED = {name: ['--exp=x'] if name == 'segment' else ['my_dir'] for name in SCRIPTS}
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


def named_flags(parser):
    """--flag -> what it sets, of all but --help."""
    actions = [action for action in parser._actions if action.dest != 'help']
    return {flag: action for action in actions for flag in action.option_strings if flag.startswith('--')}


def spellings(flag, flags):
    """The flag and every beginning that no other flag has, with dashes and with underscores."""
    starts = [flag[:end] for end in range(3, len(flag)) if flag[:end] not in flags]
    meant = {start: {action.dest for name, action in flags.items() if name.startswith(start)} for start in starts}
    alone = [flag, *(start for start in starts if len(meant[start]) == 1)]
    return {spelt for start in alone for spelt in (start, '--' + start[2:].replace('-', '_'))}


def value_of(action):
    """One that every kind of flag takes, other than the default where there is another."""
    if action.nargs == 0:
        return []
    others = [choice for choice in action.choices or ['57'] if choice != action.default]
    return [others[-1] if others else action.default]


@pytest.mark.parametrize('name', SCRIPTS)
def test_flags_of_2019_are_there_and_all_with_their_beginnings_mean_the_same_in_both_spellings(name):
    parser = SCRIPTS[name].make_parser()
    flags = named_flags(parser)
    assert set(OF_2019[name].split()) <= flags.keys()
    for flag, action in flags.items():
        value = value_of(action)
        expected = parser.parse_args([*NEEDED[name], flag, *value])
        for spelt in spellings(flag, flags):
            assert parser.parse_args([*NEEDED[name], spelt, *value]) == expected, spelt
            if value:
                assert parser.parse_args([*NEEDED[name], f'{spelt}={value[0]}']) == expected, spelt


@pytest.mark.parametrize(
    'given, name, value',
    [
        (['--exp=my_exp'], 'exp', 'my_exp'),
        (['--exp=--my_exp'], 'exp', '--my_exp'),
        (['--exp', '--my exp_2'], 'exp', '--my exp_2'),
        (['--res', 'my_file'], 'resume', Path('my_file')),
    ],
)
def test_flags_are_spelt_either_way_and_values_stay(given, name, value):
    assert getattr(segment.make_parser().parse_args(['--exp=x', *given]), name) == value


def test_what_stands_behind_two_dashes_stays():
    args = classify_script.make_parser().parse_args(['--batch_size', '4', '--', '--my_dir'])
    assert (args.batch_size, args.data) == (4, Path('--my_dir'))


@pytest.mark.parametrize('name', SCRIPTS)
@pytest.mark.parametrize('given', [['--resume', ''], ['--resume=']])
def test_resume_of_nothing_is_none(name, given):
    parser = SCRIPTS[name].make_parser()
    assert parser.parse_args([*NEEDED[name], *given]) == parser.parse_args(NEEDED[name])


HUGE = 10**30
TOO_LARGE = {  # or too small
    'classify --seed': (2**63, 2**64), 'classify --image-size': (HUGE, 2**31), 'classify --lr': (1e39, '9' * 400),
    'classify --momentum': (1e39,), 'classify --weight-decay': (1e300,),
    'docker_classify --static-loss-scale': (1e39, 1e-300, 0, -1, 'nan'), 'multilabel_classify --decay-epochs': (HUGE,),
    'segment --base-lr': (1e39,), 'segment --last-mult': (1e300,), 'segment --crop-size': (HUGE, 2**31),
    'segment --scales': ('1,1e30',), 'segment --gpu': (HUGE,), 'segment --batch-size': (HUGE,),
    'segment --epochs': (HUGE,),
    **{f'classify {flag}': (HUGE,) for flag in ('--batch-size', '--num-gpus', '--epochs', '--start-epoch', '--workers',
       '--print-freq', '--save-steps', '--decay-epochs', '--dist-timeout', '--world-size', '--rank')},
}  # fmt: skip


@pytest.mark.parametrize('flag', TOO_LARGE)
def test_number_too_large_is_told_in_a_line(flag, capsys):
    name, flag, values = *flag.split(), TOO_LARGE[flag]
    for value in values:
        with pytest.raises(SystemExit) as end:
            SCRIPTS[name].make_parser().parse_args([*NEEDED[name], flag, str(value)])
        (line,) = capsys.readouterr().err.splitlines()
        assert end.value.code == 2
        assert 'argument ' in line and flag in line and ' value: ' in line


def test_largest_numbers_are_taken(classify, undrawn, tmp_path, capsys):
    largest = 2**31 - 1
    classify('--epochs', 1, '--seed', 2**63 - 1, '--dist-timeout', largest, '--output', tmp_path)
    classify('--epochs', 2, '--auto-resume', '--output', tmp_path)
    told = classify.error(capsys, '-b', largest, '-g', 1, '--output', tmp_path)
    assert f'36 training samples are fewer than one batch (--batch-size {largest})' in told
    for flag in '--lr', '--momentum', '--weight-decay':
        told = classify.error(capsys, flag, '1e30', '--epochs', largest, '--output', tmp_path / flag)
        assert 'not finite' in told
