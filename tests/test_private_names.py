"""Tests reach into no module of ntkprobe: what they patch or import has a name without `_`."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = sorted(Path(__file__).parent.rglob("*.py"))
PATCHING = ("setattr", "delattr", "patch", "object")
"""What pytest and unittest.mock call a function that takes the name of what it replaces."""

FOREIGN = {"_loglikelihood_tokens"}
"""Names of other packages' classes that ours inherit: lm-evaluation-harness calls this one."""


def is_private(name: object) -> bool:
    return isinstance(name, str) and name.startswith("_") and not name.endswith("__")


def imported(tree: ast.Module) -> Iterator[tuple[str, str, str]]:
    """Yield the name under which something is imported, its own name, and its module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield from ((each.asname or each.name, each.name, node.module) for each in node.names)
        elif isinstance(node, ast.Import):
            for each in node.names:
                yield each.asname or each.name.partition(".")[0], "", each.name


def root(node: ast.expr) -> str:
    """Return the name that an expression such as `a.b.c` begins with."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def private_uses(source: str) -> list[str]:
    """Return which private names of ntkprobe a test imports, patches, or reads from a module."""
    tree = ast.parse(source)
    names = list(imported(tree))
    ours = {name for name, _, module in names if module.partition(".")[0] == "ntkprobe"}
    others = {name for name, *_ in names} - ours
    found = [own for name, own, _ in names if name in ours and is_private(own)]
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found += [node.attr] * (node.value.id in ours and is_private(node.attr))
        if not isinstance(node, ast.Call) or not node.args:
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else root(node.func)
        if called in PATCHING and root(node.args[0]) not in others:
            found += filter(is_private, map(patched, node.args[:2]))
    return [name for name in found if name not in FOREIGN]


def patched(argument: ast.expr) -> str:
    """Return the name that an argument such as `"ntkprobe.models.NAME"` or `"NAME"` gives."""
    text = str(argument.value) if isinstance(argument, ast.Constant) else ""
    return text.rpartition(".")[2] if text.startswith("ntkprobe.") or "." not in text else ""


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.stem)
def test_a_test_knows_public_names_only(path):
    assert private_uses(path.read_text("utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "from ntkprobe.models.cached import _TRIED",
        "from ntkprobe.models import cached\ncached._TRIED.clear()",
        "import ntkprobe\nntkprobe._hidden",
        "from ntkprobe.models import cached\nmonkeypatch.setattr(cached, '_TRIED', {})",
        "monkeypatch.setattr('ntkprobe.models.cached._TRIED', {})",
        "monkeypatch.setattr(made, '_circle', print)",
        "with patch('ntkprobe.models.cached._TRIED'): pass",
    ],
)
def test_a_private_name_is_found(source):
    assert len(private_uses(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "from ntkprobe.models import cached\nmonkeypatch.setattr(cached, 'BESIDE', 2)",
        "from ntkprobe import __version__",
        "from ntkprobe.cli._options import command_of",  # a file beside the commands, not one
        "import transformers\nmonkeypatch.setattr(transformers, '_own', 1)",
        "frame._repr_html_()",
        "monkeypatch.setattr(Class, '__call__', print)",
    ],
)
def test_other_names_are_none(source):
    assert private_uses(source) == []
