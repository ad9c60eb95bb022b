"""The folder is the registry: a plug-in is a public module that defines the class of its name.

`ntkprobe/estimators/finite_difference.py` is the plug-in `finite_difference` because it defines
(or, as a package, re-exports) the class `FiniteDifference`. Modules that define no such class are
helpers. Sources are parsed, not imported: a list of names loads neither torch nor pandas.
"""

import ast
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from types import ModuleType
from typing import Any

from .errors import UserError


def names(package: ModuleType) -> list[str]:
    """Return the names of the plug-ins in a package, sorted.

    Args:
        package: the folder, as an imported package, such as `ntkprobe.estimators`.
    """
    return _modules(package, lambda name, defined: class_name(name) in defined)


def modules_defining(package: ModuleType, *required: str) -> list[str]:
    """Return the names of the public modules in a package that define certain names, sorted.

    Args:
        package: the folder, as an imported package, such as `ntkprobe.figures`.
        required: functions or classes that each of the modules must define at top level.
    """
    return _modules(package, lambda _, defined: set(required) <= defined)


def class_name(name: str) -> str:
    """Return the class of a plug-in: `finite_difference` defines `FiniteDifference`."""
    return "".join(word.capitalize() for word in name.split("_"))


def load(package: ModuleType, name: str) -> Any:
    """Return the plug-in class that `package` holds under `name`.

    Args:
        package: the folder, as an imported package, such as `ntkprobe.estimators`.
        name: the module's name, such as `finite_difference`.

    Returns:
        The class `FiniteDifference` of the module `finite_difference`.

    Raises:
        UserError: if there is no such plug-in.
    """
    if name not in names(package):
        raise UserError(f"no {name!r} in {package.__name__}: choose from {names(package)}")
    return getattr(import_module(f"{package.__name__}.{name}"), class_name(name))


def instance(package: ModuleType, given: Any) -> Any:
    """Return a plug-in ready to be called.

    Args:
        package: the folder, as an imported package.
        given: a name, for the plug-in with its defaults, or an instance.

    Returns:
        The instance.

    Raises:
        UserError: if there is no such name, or what is given is a class or cannot be called.
    """
    if isinstance(given, str):
        return load(package, given)()
    if isinstance(given, type):
        raise UserError(f"{given.__name__} is a class: give an instance, as {given.__name__}()")
    if not callable(given):
        raise UserError(f"{given!r} is none of {package.__name__}: give one of {names(package)}")
    return given


def _modules(package: ModuleType, fits: Callable[[str, set[str]], bool]) -> list[str]:
    found = []
    for folder in map(Path, package.__path__):
        for module in iter_modules([str(folder)]):
            name = module.name
            file = folder / name / "__init__.py" if module.ispkg else folder / f"{name}.py"
            if not name.startswith("_") and fits(name, _defined(file, file.stat().st_mtime_ns)):
                found.append(name)
    return sorted(found)


@cache
def _defined(file: Path, modified: int) -> set[str]:
    """Return the names that a file defines, or imports under their own name, at top level.

    A file that is no valid Python counts as defining everything: loading it shows the error.
    """
    try:
        return set(_top_level(ast.parse(file.read_bytes())))
    except SyntaxError:
        return _Everything()


def _top_level(tree: ast.Module) -> Iterator[str]:
    for statement in tree.body:
        if isinstance(statement, ast.ClassDef | ast.FunctionDef):
            yield statement.name
        elif isinstance(statement, ast.ImportFrom):  # `from .algorithm import Gram as Gram`
            yield from (each.name for each in statement.names if each.asname == each.name)


class _Everything(set[str]):
    """Contains every name."""

    def __contains__(self, name: object) -> bool:
        return True

    def __ge__(self, other: object) -> bool:
        return True
