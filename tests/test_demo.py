"""The demo: nothing is done twice, and what it says and draws."""

import json
from itertools import permutations

import pandas as pd
import pytest

from ntkprobe import demo
from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.tiny import files

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def shortened(tmp_path_factory):
    """The demo with two steps of training and two prompts of each group."""
    folder = tmp_path_factory.mktemp("short")
    prompts = PromptSet.from_file(files.measure_path()).frame()
    few = folder / "measure.csv"
    prompts.groupby("group").head(2)[["group", "text"]].to_csv(few, index=False)
    original = demo.preset_settings

    def two_steps(name, stage):
        saving = {"save_at": [0, 2]} if stage == "sft" else {"save_at": [2]}
        return original(name, stage) | {"max_steps": 2, **saving}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "preset_settings", two_steps)
        patch.setattr(demo.embedded, "measure_path", lambda: few)
        yield folder


def measured(folder):
    """How many checkpoints of STL each kind of table is there for."""
    return {kind: len(list(folder.glob(f"stl-ntk/{kind}/*"))) for kind in ("refusal", "kernel")}


@pytest.fixture(scope="module")
def done(shortened):
    folder, told = shortened / "demo", []
    demo.run_demo(folder, tell=lambda line: told.append((line, measured(folder))))
    (folder / "told.json").write_text(json.dumps(told))
    return folder


def written(folder):
    """When each file of training and measuring was written."""
    kept = (
        p
        for p in folder.rglob("*")
        if p.is_file() and p.parent.name != "figures" and p.suffix != ".html"
    )
    return {p.relative_to(folder): p.stat().st_mtime_ns for p in kept}


def test_the_demo_leaves_both_runs_measured_and_every_figure(done):
    for run in ("stl", "dcr-stl"):
        for kind in ("kernel", "refusal"):
            assert len(list((done / f"{run}-ntk" / kind).glob("*.parquet"))) == 2
    pictures = {path.name for path in (done / "figures").iterdir()}
    assert {f"fig{n}.{kind}" for n in (1, 3, 5, 6) for kind in ("png", "pdf", "csv")} <= pictures


def test_a_first_figure_is_there_before_any_kernel_is_measured(done):
    told = json.loads((done / "told.json").read_text())
    picture = done / "figures" / "fig5.png"
    at = dict(told)[f"     a first figure, of STL alone: {picture}"]
    assert at == {"refusal": 2, "kernel": 0} and measured(done) == {"refusal": 2, "kernel": 2}
    assert [line[:3] for line, _ in told] == ["1/5", "2/5", "   ", "3/5", "4/5", "5/5"]


def test_the_demo_shows_itself_in_jupyter(done):
    found = demo.Demo(demo.find_runs([done]), None, {})
    shown = found._repr_html_()
    assert shown.count("<table") == 2 and "refusal rate" in shown and "DCR → STL" in shown


def test_the_two_directions_of_a_similarity_stand_apart(done):
    run = demo.find_runs([done])["stl"]
    wanted = run.group_means(resamples=0).set_index(["observed_group", "updated_group", "step"])
    found = demo.before_and_after(run)
    for observed, updated in permutations(("seemingly_toxic", "toxic")):
        for step in run.steps:
            mean = wanted.loc[(observed, updated, step), "similarity"]
            assert found.loc[("similarity", f"{observed} ← {updated}"), step] == mean
    apart = found.loc["similarity"].diff().iloc[-1]
    assert (apart.abs() > 1e-3).all()  # so that one in the other's place would be seen


def test_a_second_run_writes_nothing_but_figures_and_the_page(done):
    before = written(done)
    demo.run_demo(done, tell=lambda line: None)
    assert written(done) == before


def test_an_interrupted_demo_goes_on_without_repeating(shortened, done, monkeypatch):
    measure_run = demo.measure_run

    def stop(prompts, out, **options):
        if out.name == "dcr-stl-ntk":
            raise KeyboardInterrupt
        return measure_run(prompts, out, **options)

    folder = shortened / "interrupted"
    with monkeypatch.context() as patch:
        patch.setattr(demo, "measure_run", stop)
        with pytest.raises(KeyboardInterrupt):
            demo.run_demo(folder, tell=lambda line: None)
    before = written(folder)
    demo.run_demo(folder, tell=lambda line: None)
    after = written(folder)
    assert {path: after[path] for path in before} == before
    assert after.keys() >= {path for path in written(done) if path.suffix == ".parquet"}


def test_another_seed_in_the_same_folder_is_refused(done):
    with pytest.raises(UserError, match="seed = 0, now it is 1"):
        demo.run_demo(done, seed=1, tell=lambda line: None)


def test_the_demo_ends_with_a_table_and_what_to_do_next(done, capsys):
    assert main(["demo", "--output-dir", str(done)]) == 0
    out = capsys.readouterr().out
    assert "seemingly toxic ← toxic" in out and "toxic ← seemingly toxic" in out
    assert "constructed world" in out
    assert "ntkprobe measure --ckpt-dir RUN" in out.splitlines()[-2]
    assert str(done / "report.html") in out.splitlines()[-1]
    assert (done / "report.html").read_text().startswith("<!doctype html>")


def test_prompts_that_are_measured_are_in_no_training(done):
    tables = [pd.read_parquet(done / run / "data.parquet") for run in ("stl", "dcr", "dcr-stl")]
    trained = {text for table in tables for text in table["prompt"]}
    measured = {prompt.text for prompt in PromptSet.from_file(files.measure_path())}
    assert trained
    assert not trained & measured
