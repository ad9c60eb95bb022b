"""Every code block of docs/ runs, and the pages build."""

import os
import re
import subprocess
import sys
from pathlib import Path

import matplotlib
import pytest
from doc_blocks import Block, blocks, make_world, run_console, run_python
from matplotlib import pyplot as plt

matplotlib.use("Agg")
ROOT = Path(__file__).parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
WITH_CODE = [page for page in PAGES if {b.language for b in blocks(page)} & {"python", "console"}]


def name_of(page):
    return str(page.relative_to(ROOT / "docs"))


def test_a_block_is_found_with_its_language_and_the_reason_above_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "a\n\n*Not run here: it needs a GPU.*\n\n```console\nx\n```\n\n```python\ny\n```\n"
    )
    assert blocks(page) == [
        Block("console", "x\n", "it needs a GPU."),
        Block("python", "y\n", None),
    ]


def test_a_block_that_fails_is_noticed():
    with pytest.raises(AssertionError):
        run_python("assert 1 == 2", {})
    with pytest.raises(AssertionError, match="ntkprobe measure"):
        run_console("ntkprobe measure --prompts nowhere.csv")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_block_is_code_or_says_that_it_is_none(page):
    kinds = {block.language for block in blocks(page) if not block.reason}
    assert kinds <= {"python", "console", "text"} or page.name == "design.md"


def test_few_blocks_are_not_run_and_each_says_why():
    reasons = [block.reason for page in PAGES for block in blocks(page) if block.reason]
    assert len(reasons) <= 8 and all(len(reason) > 20 for reason in reasons)


def test_every_page_is_in_the_navigation():
    config = (ROOT / "mkdocs.yml").read_text()
    assert sorted(re.findall(r": (\S+\.md)$", config, re.MULTILINE)) == sorted(map(name_of, PAGES))


@pytest.mark.slow
@pytest.mark.parametrize("page", WITH_CODE, ids=name_of)
def test_the_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_world(tmp_path)
    names = {"__name__": "docs"}
    for block in blocks(page):
        if block.language == "console" and not block.reason:
            run_console(block.text)
        if block.language == "python" and not block.reason:
            run_python(block.text, names)
    plt.close("all")


@pytest.mark.slow
def test_the_pages_build_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs")
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "-d", str(tmp_path)]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT)}
    found = subprocess.run(call, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    assert "measure_kernel" in (tmp_path / "api/measuring/index.html").read_text()
    assert "ratio" in (tmp_path / "benchmarks/index.html").read_text()
