"""What README.md and docs/ show works and is true."""

import re
import tomllib
from pathlib import Path

import doc_blocks
import pytest

from ntkprobe.cli.demo import demo_table
from ntkprobe.demo import before_and_after
from ntkprobe.figures import figure_names, find_runs
from ntkprobe.plots.style import run_label

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text()
PAGES = [str(page.relative_to(ROOT)) for page in (ROOT / "docs").rglob("*.md")]


def blocks(language):
    return [
        block.text for block in doc_blocks.blocks(ROOT / "README.md") if block.language == language
    ]


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a run and a file of prompts, as the README names them."""
    monkeypatch.chdir(tmp_path)
    doc_blocks.make_world(tmp_path)
    return tmp_path


def test_the_command_line_block_runs_and_its_tables_read_as_shown(here):
    doc_blocks.run_console(blocks("console")[0])
    assert {p.stem for p in (here / "figures").glob("*.png")} >= {"fig1", "fig3", "fig5", "fig6"}
    names = {}
    exec(f"import ntkprobe as ntk\n{blocks('python')[1]}", names)
    assert names["run"].steps == [10, 20]


def test_the_python_block_runs_on_the_embedded_model_as_it_stands(capsys):
    names = {}
    exec(compile(blocks("python")[0], "<README>", "exec", dont_inherit=True), names)
    assert names["kernel"].norms.shape == (4, 4)
    assert "seemingly_toxic" in capsys.readouterr().out


def rows_of(text):
    """Return the cells of every row of a text's tables."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_readme_is_short_and_its_one_table_has_the_replications_numbers():
    words = " ".join(line for line in README.splitlines() if not line.startswith("|")).split()
    assert len(words) <= 500
    report = (ROOT / "figures" / "replication" / "report.md").read_text()
    found = rows_of(report.partition("## Final models")[2].partition("\n## ")[0])
    at = [found[0].index(name) for name in ("held out, both", "safety prompts", "normal")]
    rates = {row[0]: [float(row[i].split()[0]) for i in at] for row in found[2:]}

    def mean_over_seeds(run):
        seeds = [each for name, each in rates.items() if run in (name, name.rpartition("-")[0])]
        return [f"{sum(column) / len(seeds):.0f}" for column in zip(*seeds, strict=True)]

    shown = {row[0]: row[1:] for row in rows_of(README)[2:]}
    runs = ("base", "stl", "dcr-stl", "control-stl")
    assert list(shown.values()) == [mean_over_seeds(run) for run in runs]
    assert len([line for line in blocks("python")[0].splitlines() if line.strip()]) <= 12
    assert len(blocks("console")[0].splitlines()) == 3


def test_every_figure_is_in_the_table():
    page = (DOCS / "figures.md").read_text()
    for name in figure_names():
        assert f"`ntkprobe/figures/{name}.py`" in page
    named = re.findall(r"`(ntkprobe/figures/\w+\.py)`", page)
    assert [path for path in named if not (ROOT / path).exists()] == []


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", *PAGES])
def test_every_link_into_the_repository_leads_somewhere(page):
    text = (ROOT / page).read_text()
    links = re.findall(r"\]\((?!https?://)([^)#]+)\)", text)
    assert [link for link in links if not (ROOT / page).parent.joinpath(link).exists()] == []


def test_every_package_of_the_import_contract_is_on_the_design_page():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    levels = config["tool"]["importlinter"]["contracts"][0]["layers"]
    packages = {
        name for level in levels for name in re.findall(r"\w+", re.sub(r"\(\w+\)", "", level))
    }
    page = (ROOT / "docs" / "design.md").read_text()
    assert {name for name in packages if not re.search(rf"`{name}/?`", page)} == set()


def test_the_demo_block_is_what_the_demo_prints_of_the_committed_measurements():
    runs = find_runs([ROOT / "figures" / "demo"])
    printed = demo_table({run_label(name): before_and_after(run) for name, run in runs.items()})
    page = (DOCS / "demo.md").read_text()
    shown = page.partition("<!-- demo -->")[2].partition("<!-- /demo -->")[0]
    assert shown.strip("\n").splitlines()[1:-1] == printed.strip("\n").splitlines()


def test_the_table_of_mitigations_is_that_of_the_benchmark():
    page = (DOCS / "methods.md").read_text()
    shown = page.partition("<!-- mitigations -->")[2].partition("<!-- /mitigations -->")[0]
    full = (ROOT / "benchmarks" / "mitigations.md").read_text()
    measured = {row[0]: row[1:4] for row in map(cells, full.splitlines()) if len(row) > 4}
    rows = [row for row in map(cells, shown.splitlines()) if len(row) == 4]
    assert len(rows) > 9 and all(measured[row[0]] == row[1:] for row in rows)


def cells(line):
    return [cell.strip() for cell in line.strip("|").split("|")] if line.startswith("|") else []
