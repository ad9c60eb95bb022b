"""The notebooks: each .ipynb is its .py, small, and runs anywhere."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
nbformat = pytest.importorskip("nbformat")
pytest.importorskip("jupytext")


def load_script(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script(ROOT / "notebooks" / "regenerate.py")
SOURCES = script.notebooks()
each = pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)


def cells(notebook):
    return [(cell.id, cell.cell_type, cell.source) for cell in notebook.cells]


@each
def test_a_pair_is_in_step(source):
    pair = nbformat.read(source.with_suffix(".ipynb"), 4)
    nbformat.validate(pair)
    assert cells(script.read(source)) == cells(pair), f"python {script.__file__} {source.stem}"


def test_a_source_that_has_changed_is_out_of_step(tmp_path):
    changed = tmp_path / SOURCES[0].name
    changed.write_text(SOURCES[0].read_text() + "\n# %%\n1 + 1\n")
    assert cells(script.read(changed)) != cells(nbformat.read(SOURCES[0].with_suffix(".ipynb"), 4))


@each
def test_a_committed_notebook_is_small_and_names_no_machine(source):
    text = source.with_suffix(".ipynb").read_text()
    assert len(text) < 300_000
    assert not re.search(r"/(tmp|home|root|work)/|Traceback", text)
    assert "<progress" not in text and "image/png" in text


@pytest.mark.slow
@each
def test_a_notebook_runs(source, tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    outputs = [cell.get("outputs", []) for cell in script.executed(source, tmp_path).cells]
    pictures = [o for each in outputs for o in each if "image/png" in o.get("data", {})]
    assert pictures
