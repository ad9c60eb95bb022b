"""`ntkprobe why` shows, writes and refuses what it should."""

import pandas as pd
import pytest
import training_world as world

from ntkprobe.cli import main
from ntkprobe.training.sft import SFTConfig, train_sft


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("why")
    pairs = [*world.safe(3)[:2], type(world.safe(1)[0])("a\x1b[31m <b>red</b>?", "I cannot.")]
    config = SFTConfig(
        output_dir=str(root / "run"), use_cpu=True, max_steps=2, save_at=[2], n_general=4, n_safe=3
    )
    train_sft(world.saved(root / "base"), world.general(4), pairs, config)
    return root / "run"


def test_pairs_are_shown_with_their_texts_and_written(run, tmp_path, capsys):
    call = ["why", str(run), "--prompt", "Kill it?\x1b[2J", "--target", "tokens", "--token", "I"]
    assert main([*call, "--output-dir", str(tmp_path)]) == 0
    shown = capsys.readouterr().out
    assert "towards:" in shown and "away:" in shown and "I cannot" in shown
    assert "\x1b" not in shown
    rows = pd.read_parquet(tmp_path / "attribution.parquet")
    assert list(rows) == ["observed", "pair", "source", "change", "error", "share", "agreement"]
    assert len(rows) == 7 and (tmp_path / "why.png").is_file() and (tmp_path / "why.pdf").is_file()
    assert shown.splitlines()[-1].startswith("1 prompts, 7 pairs: ")


def test_candidates_are_ordered_for_the_recipe_that_takes_the_first(run, tmp_path, capsys):
    rows = [{"prompt": p, "response": r} for p, r in (("Kill it?", "I do."), ("Go?", "I go."))]
    pool = tmp_path / "pool.jsonl"
    pd.DataFrame(rows).to_json(pool, orient="records", lines=True)
    call = ["why", str(run), "--prompt", "Kill it?", "--target", "tokens", "--token", "I"]
    call += ["--candidates", str(pool)]
    assert main([*call, "--output-dir", str(tmp_path / "out")]) == 0
    found = pd.read_json(tmp_path / "out" / "candidates.jsonl", lines=True)
    assert list(found) == ["prompt", "response", "change"] and len(found) == 2
    assert found["change"].is_monotonic_increasing
    assert "--recipe influence --seemingly" in capsys.readouterr().out
    assert main(call) == 2 and "--candidates needs a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ([], "no prompts to explain: give --prompt"),
        (["--prompt", "x", "--shard", "0/2"], "give --output-dir"),
        (["--prompt", "x", "--top", "0"], "--top 0"),
        (["--prompt", "x", "--target", "y"], "no target 'y'"),
        (["--prompt", "x", "--refused-by", "nowhere"], "no measurements in nowhere"),
        (["--prompt", "x", "--estimator", "sketch", "--side", "500"], "larger than every layer"),
        (["--prompt", "x", "--pairs", "nowhere.csv"], "nowhere.csv"),
        (
            ["--prompt", "x", "--target", "tokens", "--token", "two words"],
            "ntkprobe: 'two words' is not one token of this model but [",
        ),
    ],
)
def test_a_mistake_is_one_line_and_status_2(run, words, why, capsys):
    assert main(["why", str(run), *words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ntkprobe: ")]
    assert len(said) == 1 and why in said[0]


@pytest.mark.parametrize("place", [".", "checkpoint-2", "checkpoint-2/why"])
@pytest.mark.parametrize("option", ["--output-dir", "--index"])
def test_nothing_is_written_into_a_run(run, place, option, capsys):
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    call = ["why", str(run), "--prompt", "x", "--estimator", "sketch", option, str(run / place)]
    assert main(call) == 2
    assert f"{option} {run / place} lies inside the run" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before


def test_pairs_of_an_unknown_group_are_refused_as_measure_refuses_them(run, tmp_path, capsys):
    pairs = tmp_path / "pairs.csv"
    pairs.write_text("prompt,response,group\nkill,no,toxic\nbake,yes,toxik\n")
    measure = ["measure", "--ckpt-dir", str(run), "--prompts", str(pairs), "--only", "influence"]
    measure += ["--influence", "refusal", "--updated", str(pairs)]
    said = []
    for words in (["why", str(run), "--prompt", "x", "--pairs", str(pairs)], measure):
        assert main([*words, "--output-dir", str(tmp_path / "out")]) == 2
        said.append(capsys.readouterr().err.splitlines()[-1])
    assert said[0] == said[1]
    assert said[0].startswith(f"ntkprobe: {pairs}, row 2: unknown group 'toxik': choose from [")


def test_no_run_is_a_mistake(capsys):
    assert main(["why", "nowhere", "--prompt", "x"]) == 2
    assert "no folder nowhere" in capsys.readouterr().err


def test_the_folder_of_another_command_is_refused_before_anything_is_computed(
    run, tmp_path, capsys
):
    (tmp_path / "run.json").write_text('{"prompts": {}, "model": {}, "kernel": {}}')
    assert main(["why", str(run), "--prompt", "x", "--output-dir", str(tmp_path)]) == 2
    said = capsys.readouterr().err.strip()
    assert said == f"ntkprobe: {tmp_path} is no attribution's folder: give another --output-dir"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
