"""Rules of the code that no linter checks: short functions, no work on import, the README's table."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted(
    path for part in ('.', 'models', 'utils', 'data', 'tools', 'tests') for path in (ROOT / part).glob('*.py')
)
SCRIPTS = [path for path in FILES if path.parent.name != 'tests']
ALLOWED = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.ClassDef, ast.Assign, ast.AnnAssign)


@pytest.mark.parametrize('path', FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_60_lines(path):
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]
    assert not [node.name for node in functions if node.end_lineno - node.lineno >= 60]


@pytest.mark.parametrize('path', SCRIPTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_only_defines(path):
    docstring, *rest = ast.parse(path.read_text()).body
    assert isinstance(docstring, ast.Expr)
    others = [node for node in rest if not isinstance(node, ALLOWED)]
    conditions = [ast.unparse(node.test) for node in others if isinstance(node, ast.If)]
    assert len(conditions) == len(others)
    assert set(conditions) <= {"__name__ == '__main__'", 'not __package__'}


def test_every_file_can_be_imported_in_silence(tmp_path):
    names = ['.'.join(path.relative_to(ROOT).with_suffix('').parts) for path in SCRIPTS]
    code = f'import importlib\nfor name in {names}: importlib.import_module(name)'
    ended = subprocess.run([sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, '', '')


def test_readme_has_the_table_of_the_nets():
    made = subprocess.run(
        [sys.executable, '-m', 'tools.model_table'], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert made.stdout.strip() in (ROOT / 'README.md').read_text()
