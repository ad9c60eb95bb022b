"""Laws of the registry: what makes a module of a folder a plug-in, and what does not."""

import sys
from importlib import import_module

import pytest

from ntkprobe import plugins
from ntkprobe.errors import UserError

MODULES = {
    "two_words.py": "class TwoWords:\n    setting = 1\n",
    "helper.py": "class Other:\n    pass\n\ndef numbers():\n    pass\n",
    "_hidden.py": "class Hidden:\n    pass\n",
    "imported.py": "from .packaged import Packaged\n",
    "packaged/__init__.py": "from .inner import Packaged as Packaged\n",
    "packaged/inner.py": "class Packaged:\n    pass\n",
    "drawn.py": "raise ValueError(1)\n\ndef numbers():\n    pass\n\ndef draw(): pass\n",
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    place = tmp_path / "some_plugins"
    for name, text in {"__init__.py": "", **MODULES}.items():
        (place / name).parent.mkdir(exist_ok=True, parents=True)
        (place / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield import_module("some_plugins")
    for name in [name for name in sys.modules if name.startswith("some_plugins")]:
        del sys.modules[name]


def test_a_plugin_is_a_public_module_with_the_class_of_its_name_or_a_reexport_of_it(folder):
    assert plugins.names(folder) == ["packaged", "two_words"]
    assert plugins.load(folder, "two_words").setting == 1
    assert plugins.load(folder, "packaged").__name__ == "Packaged"


def test_a_module_is_found_by_its_functions_without_being_imported(folder):
    assert plugins.modules_defining(folder, "numbers", "draw") == ["drawn"]
    assert plugins.modules_defining(folder, "numbers") == ["drawn", "helper"]
    assert "some_plugins.drawn" not in sys.modules


@pytest.mark.parametrize("name", ["helper", "imported", "_hidden", "inner", "nowhere"])
def test_what_is_no_plugin_is_refused_with_those_there_are(folder, name):
    with pytest.raises(UserError, match=r"choose from \['packaged', 'two_words'\]"):
        plugins.load(folder, name)


def test_a_file_added_later_is_found_and_one_that_is_no_python_says_so_when_it_is_loaded(folder):
    place = folder.__path__[0]
    with open(f"{place}/later.py", "w") as file:
        file.write("class Later\n")
    assert "later" in plugins.names(folder)
    with pytest.raises(SyntaxError):
        plugins.load(folder, "later")
