"""The public names: all there, none by accident, none that costs an import."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import arrcoc_sam as aa

_DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("name", aa.__all__)
def test_every_listed_name_is_there(name: str) -> None:
    assert getattr(aa, name) is not None
    assert name in dir(aa)


def test_the_list_is_guarded() -> None:
    """A public name comes or goes on purpose only."""
    assert set(aa._HOMES) | aa._SUBPACKAGES | {"__version__"} == set(aa.__all__)


def test_names_of_training() -> None:
    assert set(aa.training._HOMES) == set(aa.training.__all__) == set(dir(aa.training))
    for name in aa.training.__all__:
        assert getattr(aa.training, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aa.training.nothing  # noqa: B018


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        aa.nothing  # noqa: B018


def test_messages_of_the_library_name_arguments() -> None:
    """An option of the command line stands in parentheses, after the argument of the Python function."""
    package = Path(aa.__file__).parent
    for file in sorted(set(package.rglob("*.py")) - set((package / "cli").rglob("*.py"))):
        tree = ast.parse(file.read_text(encoding="utf-8"))
        docs = {ast.get_docstring(node, clean=False) for node in ast.walk(tree) if isinstance(node, _DOCUMENTED)}
        texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)} - docs
        for text in (text for text in texts if isinstance(text, str) and "arrcoc-sam " not in text):
            assert not re.search(r"(?<![(-])--[a-z]", text), f"{file.name}: {text}"


def test_import_is_light() -> None:
    """Neither torch nor anything optional is imported by ``import arrcoc_sam``."""
    code = "import sys, arrcoc_sam; sys.exit(any(n in sys.modules for n in ('torch', 'transformers', 'matplotlib')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
