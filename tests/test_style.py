"""Rules of the code that no linter checks: short functions, no work on import, no need of what only tests need."""

import ast
import gc
import importlib.util
import re

import pytest

import models
from tests.launch import ROOT
from tools import model_table

CHAIN = 'models', 'utils', 'data', 'scripts', 'tools', 'hubconf'  # each imports itself and those before it
SCRIPTS = sorted(ROOT.glob('*.py')) + [path for part in CHAIN for path in sorted((ROOT / part).rglob('*.py'))]
ALLOWED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)
FOR_TESTS = {'pytest', 'sklearn', 'timm', 'onnxscript', 'onnxruntime'}
QUICK = 'dla60x', 'resnext50_elastic'
SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in models.classifiers if name not in QUICK]


@pytest.mark.parametrize('path', [*SCRIPTS, *sorted((ROOT / 'tests').glob('*.py'))], ids=lambda path: path.stem)
def test_no_function_is_longer_than_60_lines(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if node.end_lineno - node.lineno >= 60]


@pytest.fixture
def uncollected():
    """What other tests have left is not cleared away meanwhile: open files warn of that."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_only_defines_and_is_imported_in_silence(path, uncollected, capfd, recwarn):
    docstring, *rest = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    allowed = (*ALLOWED, ast.For) if path.name == 'hubconf.py' else ALLOWED  # torch.hub reads a module's names
    others = [node for node in rest if not isinstance(node, allowed)]
    conditions = [ast.unparse(node.test) for node in others if isinstance(node, ast.If)]
    assert len(conditions) == len(others)
    assert set(conditions) <= {"__name__ == '__main__'", 'not __package__'}
    assert FOR_TESTS.isdisjoint(re.findall(r'^ *(?:import|from) (\w+)', path.read_text(), re.M))
    name = '.'.join(path.relative_to(ROOT).with_suffix('').parts)
    spec = importlib.util.spec_from_file_location(name, path)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))
    assert (capfd.readouterr(), recwarn.list) == (('', ''), [])


def room_of(module):
    """The part of CHAIN that a module of ours is in; None for one of a library."""
    if (ROOT / f'{module.partition(".")[0]}.py').exists():
        return 'hubconf' if module == 'hubconf' else 'scripts'
    return module.partition('.')[0] if module.partition('.')[0] in CHAIN else None


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    """Also those within functions; tests/ is nobody's to import."""
    own = room_of('.'.join(path.relative_to(ROOT).with_suffix('').parts))
    modules = re.findall(r'^ *(?:import|from) ([\w.]+)', path.read_text(), re.M)
    rooms = {room_of(module) for module in modules} - {None}
    assert 'tests' not in modules and rooms <= set(CHAIN[: CHAIN.index(own) + 1])


@pytest.mark.parametrize('name', [*QUICK, *SLOW])
def test_readme_has_the_nets_of_the_table(name):
    assert f'\n| {" | ".join(model_table.row(name))} |\n' in (ROOT / 'README.md').read_text()
