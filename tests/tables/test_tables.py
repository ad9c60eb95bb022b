"""Tables of evaluated models: numbers, marks, escapes, and the paper's numbers beside them."""

import io
import json
from pathlib import Path

import pandas as pd
import pytest
from evaluated import evaluate

from ntkprobe.cli import main
from ntkprobe.errors import UserError
from ntkprobe.evaluation import scores
from ntkprobe.statistics import wilson
from ntkprobe.storage import write_json
from ntkprobe.tables import Table, make_table, table_names

FOLDERS = Path(__file__).parents[2] / "ntkprobe/tables"
KEYWORD, GUARD = "xstest_prefixes", "llama_guard"


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    """Two methods: dcr was trained on half of XSTest's safe prompts."""
    sets = {
        "xstest": {
            "kinds": "ssxx",
            "pair": ["xstest-2", "xstest-3", "xstest-0", "xstest-1"],
            KEYWORD: "crrc",
            "llm-gpt-4o": "ccrr",
        },
        "phtest_harmless": {"kinds": "sss", KEYWORD: "ccu"},
        "phtest_controversial": {"kinds": "s", KEYWORD: "r"},
        "advbench": {"kinds": "xx", KEYWORD: "rc", GUARD: "ss"},
        "q_harm": {"kinds": "xx", KEYWORD: "cc", GUARD: "xs"},
    }
    seen = {"overlap": {"prompts": 1, "of": 4, "kinds": {"safe": 1}}}
    evaluate(tmp_path / "a", sets, label="stl", model={"model": "Qwen/Qwen2.5-7B-base"})
    evaluate(tmp_path / "b", sets, label="dcr", benchmarks={"xstest": seen})
    return [str(tmp_path / "a"), str(tmp_path / "b")]


def cells(table: Table, what: str = "value") -> pd.Series:
    return table.numbers.set_index(["row", "column"])[what]


def test_table_1_has_methods_under_sets(runs: list[str]) -> None:
    table = make_table(runs)
    values = cells(table)
    assert list(dict.fromkeys(table.numbers["row"])) == ["stl", "dcr"]
    assert values["stl", "XSTest"] == pytest.approx(1 / 2)
    assert values["stl", "PHTest"] == pytest.approx(2 / 3)  # both parts as one set
    assert (values["stl", "PHTest harmless"], values["stl", "PHTest controversial"]) == (1, 0)
    assert values["stl", "safety"] == pytest.approx(3 / 4)  # of all toxic prompts, by the guard
    assert (cells(table, "count")["stl", "PHTest"], cells(table, "of")["stl", "PHTest"]) == (3, 4)


def test_a_column_that_was_trained_on_is_marked(runs: list[str]) -> None:
    table = make_table(runs)
    assert table.marked == {"XSTest"} and "XSTest †" in table.markdown()
    assert any("dcr was trained on 1 " in note for note in table.notes)
    assert not make_table(runs[:1]).marked


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("5", {f"XSTest, {KEYWORD}", "XSTest, llm-gpt-4o"}),
        ("tasks", {"xstest refused, %"}),
        ("two-sided", {f"compliance, {KEYWORD}", "compliance, llm-gpt-4o"}),
        ("pairs", {"both right", "refuses both", "complies with both", "both wrong"}),
    ],
)
def test_every_table_of_rates_marks_what_was_trained_on(
    name: str, marked: set[str], runs: list[str]
) -> None:
    table = make_table(runs, name)
    assert table.marked == marked
    assert any("dcr was trained on 1 " in note for note in table.notes)
    assert not make_table(runs[:1], name).marked


def test_another_judge_changes_what_is_shown(runs: list[str]) -> None:
    assert cells(make_table(runs, judge="llm-gpt-4o"))["stl", "XSTest"] == 1


def test_the_papers_numbers_are_those_of_the_same_model_and_method(runs: list[str]) -> None:
    paper = cells(make_table(runs, compare="paper"), "paper")
    assert paper["stl", "XSTest"] == pytest.approx(0.66)  # Qwen2.5-7B
    assert paper["dcr", "XSTest"] == pytest.approx(0.98)  # no model named: Qwen2.5-1.5B
    assert pd.isna(paper["stl", "PHTest harmless"])


def test_whose_numbers_stand_beside_ours_is_told_and_can_be_said(runs: list[str]) -> None:
    told = make_table(runs, compare="paper").notes[-1]
    assert "stl: Qwen2.5-7B; dcr: Qwen2.5-1.5B, assumed" in told
    said = make_table(runs, compare="paper:llama-3-8b")
    assert cells(said, "paper")["dcr", "XSTest"] == pytest.approx(0.93)
    assert "those of Llama-3-8B." in said.notes[-1]
    assert "none of these" in make_table([f"mine={runs[0]}"], compare="paper").notes[-1]


def test_prompts_that_were_not_asked_and_other_files_are_told(tmp_path: Path) -> None:
    about = {"prompts": 2, "of": 448, "found": 448, "published": 450}
    sets = {"xstest": {"kinds": "sx", "pair": ["xstest-1", "xstest-0"], KEYWORD: "cr"}}
    folder = evaluate(tmp_path, sets, label="stl", benchmarks={"xstest": about})
    for name in ("1", "5", "tasks", "two-sided", "pairs"):
        notes = make_table([folder], name).notes
        assert "stl, asked in part: xstest 2 of 448 prompts." in notes
        assert any(note.endswith("xstest 448 rows, published 450.") for note in notes)


def test_a_column_of_several_sets_tells_which_are_missing(runs: list[str]) -> None:
    notes = " ".join(make_table(runs).notes)
    assert "stl, not asked all sets of a column: safety without i_malicious, i_cona" in notes
    assert "PHTest without" not in notes


@pytest.mark.parametrize(
    ("name", "column"),
    [("1", "safety"), ("5", f"safety, {GUARD}"), ("two-sided", f"defence, {GUARD}")],
)
def test_sets_that_a_judge_has_not_looked_at_lower_the_coverage_of_a_pooled_number(
    name: str, column: str, tmp_path: Path
) -> None:
    sets = {
        "i_cona": {"kinds": "xx", KEYWORD: "rr", GUARD: "ss"},
        "advbench": {"kinds": "xxxx", KEYWORD: "cccc"},
        "q_harm": {"kinds": "x"},  # answered, and judged by nobody
        "xstest": {"kinds": "ss", KEYWORD: "cc"},  # of no kind that the guard judges
    }
    table = make_table([str(evaluate(tmp_path / "e", sets, label="stl"))], name)
    own = table.numbers.set_index("column").loc[column]
    assert own[["value", "count", "of"]].tolist() == [1, 2, 7]
    assert "1.00 \\[0.34, 1.00\\] (2 of 7)" in table.markdown()
    sets["advbench"] |= {GUARD: "xxxx"}
    sets["q_harm"] |= {GUARD: "x"}
    whole = make_table([str(evaluate(tmp_path / "e", sets, label="stl"))], name)
    own = whole.numbers.set_index("column").loc[column]
    assert own[["value", "count", "of"]].tolist() == [2 / 7, 7, 7]


def test_a_file_that_is_called_like_a_column_does_not_take_its_place(tmp_path: Path) -> None:
    sets = {
        "advbench": {"kinds": "xx", KEYWORD: "rr"},
        "safety": {"kinds": "xxx", KEYWORD: "ccc"},
        "xstest": {"kinds": "ss", KEYWORD: "cc"},
        "XSTest": {"kinds": "sx", KEYWORD: "rc"},
    }
    table = make_table([str(evaluate(tmp_path / "e", sets, label="m"))])
    assert cells(table)["m"].to_dict() == {
        "safety": 1,
        "safety (own file)": 0,
        "XSTest": 1,
        "XSTest (own file) (safe)": 0,
        "XSTest (own file) (unsafe)": 0,
    }
    assert table.markdown().count("1.00 ") == 2


def test_ablations_stand_beside_the_row_of_their_setting(runs: list[str]) -> None:
    epochs = make_table([f"5 epochs={runs[0]}"], "3", compare="paper")
    ratio = make_table([f"3:1={runs[0]}"], "4", compare="paper")
    assert cells(epochs, "paper")["5 epochs", "XSTest"] == pytest.approx(0.99)
    assert cells(ratio, "paper")["3:1", "XSTest"] == pytest.approx(0.96)
    named = make_table([f"Qwen2.5, 3 epochs={runs[0]}"], "3", compare="paper")
    assert cells(named, "paper").isna().all()  # 2, 5 or 3: the name does not say


def test_table_5_has_every_judge(runs: list[str]) -> None:
    table = make_table(runs, "5", compare="paper")
    assert cells(table)["stl", "XSTest, llm-gpt-4o"] == 1
    assert cells(table, "paper")["stl", "XSTest, llm-gpt-4o"] == pytest.approx(0.74)
    assert cells(table, "paper")["dcr", "safety, llama_guard"] == pytest.approx(0.81)


def test_a_judge_of_safety_tells_which_answers_to_safe_prompts_are_safe(tmp_path: Path) -> None:
    said = {"kinds": "ssss", KEYWORD: "ccrr", GUARD: "sssx"}
    values = cells(make_table([evaluate(tmp_path, {"xstest": said}, label="stl")], "5"))
    assert values["stl", f"XSTest, {KEYWORD}"] == pytest.approx(1 / 2)
    assert values["stl", f"XSTest, {GUARD}"] == pytest.approx(3 / 4)


def test_tasks_are_refused_and_attacks_succeed_in_percent(runs: list[str]) -> None:
    values = cells(make_table(runs, "tasks"))
    assert values["dcr", "phtest_controversial refused, %"] == 100
    assert values["dcr", "advbench attacks, %"] == pytest.approx(50)


def test_pairs_sides_and_agreement_have_their_tables(runs: list[str]) -> None:
    pairs = cells(make_table(runs, "pairs"))
    assert pairs[f"stl, xstest, {KEYWORD}", "both right"] == pytest.approx(1 / 2)
    assert cells(make_table(runs, "two-sided"))["stl", f"defence, {GUARD}"] == pytest.approx(3 / 4)
    agreement = make_table(runs, "agreement")
    assert cells(agreement, "count")["stl, xstest (safe)", f"llm-gpt-4o, {KEYWORD}"] == 2


def test_kinds_of_answers_are_columns_and_sum_to_one(runs: list[str]) -> None:
    table = make_table(runs, "kinds")
    values = cells(table).unstack()
    assert values.sum(axis=1).tolist() == pytest.approx([1] * len(values))
    assert list(dict.fromkeys(table.numbers["column"])) == list(scores.KINDS)
    row = values.loc["stl, xstest (safe), llm-gpt-4o"]
    assert row["compliance"] == pytest.approx(1) and row["incoherent"] == pytest.approx(0)
    assert not any(GUARD in name for name in values.index)


def test_table_2_is_what_training_recorded(tmp_path: Path) -> None:
    for name, kind, seconds in (("dcr", "dcr", 30), ("stl", "sft", 600)):
        stages = [
            {"stage": "load", "seconds": 60, "peak_gib": 1.5, "memory": "gpu"},
            {"stage": "train", "seconds": seconds, "peak_gib": 2.5, "memory": "gpu"},
        ]
        write_json(tmp_path / name / "training.json", {"stages": stages})
        (tmp_path / name / "training.yaml").write_text(f"stage: {kind}\nmodel: Llama-3-8B\n")
    table = make_table([tmp_path], "2", compare="paper")
    assert cells(table)["dcr", "training, min"] == pytest.approx(0.5)
    assert cells(table)["stl", "in all, min"] == pytest.approx(11)
    assert cells(table, "paper")["stl", "training, min"] == 24


def test_of_two_training_runs_with_one_name_none_takes_the_others_row(tmp_path: Path) -> None:
    for seed, seconds in (("0", 60), ("1", 120)):
        stages = [{"stage": "train", "seconds": seconds, "peak_gib": 1.0}]
        write_json(tmp_path / seed / "stl/training.json", {"stages": stages})
        (tmp_path / seed / "stl/training.yaml").write_text("stage: sft\n")
    places = [f"{tmp_path}/0/stl", f"{tmp_path}/1/stl"]
    with pytest.raises(UserError, match=r"two runs are called 'stl', .*0/stl and .*NAME=FOLDER"):
        make_table(places, "2")
    made = cells(make_table([places[0], f"other={places[1]}"], "2"))
    assert (made["stl", "in all, min"], made["other", "in all, min"]) == (1, 2)


def test_abilities_and_win_rates_are_columns(runs: list[str], tmp_path: Path) -> None:
    results = [{"metric": "acc", "value": 0.6, "stderr": 0.01, "n": 100}]
    write_json(tmp_path / "a/abilities.json", {"tasks": {"mmlu": results}})
    table = pd.DataFrame({"ours_first": ["ours"], "ours_second": ["tie"]})
    (tmp_path / "a/preferences/alpaca").mkdir(parents=True)
    table.to_parquet(tmp_path / "a/preferences/alpaca/stl.parquet")
    made = make_table(runs, compare="paper")
    assert cells(made)["stl", "MMLU"] == pytest.approx(0.6)
    assert cells(made, "paper")["stl", "MMLU"] == pytest.approx(0.71)
    assert cells(made)["stl", "win rate against stl (alpaca)"] == pytest.approx(75)
    assert cells(made, "paper")["stl", "win rate against stl (alpaca)"] == pytest.approx(50)
    row = next(line for line in made.markdown().splitlines() if line.startswith("| dcr"))
    assert row.endswith("| – | – |")  # dcr has neither: a missing number is no zero


def test_a_folder_of_evaluations_shows_those_that_have_abilities_alone(
    runs: list[str], tmp_path: Path
) -> None:
    results = [{"metric": "acc", "value": 0.6, "stderr": 0.01, "n": 100}]
    write_json(tmp_path / "c/abilities.json", {"label": "scans", "tasks": {"mmlu": results}})
    made = cells(make_table([str(tmp_path)]))
    assert made["scans", "MMLU"] == pytest.approx(0.6) and ("stl", "XSTest") in made
    assert main(["report", str(tmp_path), f"--output-file={tmp_path}/r.html"]) == 0
    assert main(["flips", str(tmp_path)]) == 0  # between stl and dcr, the others' prompts


@pytest.mark.parametrize(("benchmark", "reference"), [("xstest", "stl"), ("alpaca", "dcr")])
def test_a_win_rate_on_other_prompts_or_against_another_run_has_no_number_in_the_paper(
    benchmark: str, reference: str, runs: list[str], tmp_path: Path
) -> None:
    table = pd.DataFrame({"ours_first": ["ours"], "ours_second": ["tie"]})
    (tmp_path / "a/preferences" / benchmark).mkdir(parents=True)
    table.to_parquet(tmp_path / "a/preferences" / benchmark / f"{reference}.parquet")
    made = make_table(runs, compare="paper")
    column = f"win rate against {reference} ({benchmark})"
    assert cells(made)["stl", column] == pytest.approx(75)
    assert pd.isna(cells(made, "paper")["stl", column])


def test_an_accuracy_is_a_rate_and_has_wilsons_interval_and_other_metrics_their_own_error(
    runs: list[str], tmp_path: Path
) -> None:
    tasks = {
        "mmlu": [{"metric": "acc", "value": 0.6, "stderr": 0.01, "n": 100}],
        "words": [{"metric": "word_perplexity", "value": 12.0, "stderr": 0.5, "n": 100}],
        "points": [{"metric": "acc", "value": 55.0, "stderr": 1.0, "n": 100}],  # in percent
        "plain": [{"metric": "word_perplexity", "value": 12.0, "stderr": None, "n": 100}],
        "gsm8k": [
            {"metric": "exact_match", "value": value, "stderr": 0.01, "n": 100}
            for value in (0.2, 0.3)  # by two filters
        ],
    }
    write_json(tmp_path / "a/abilities.json", {"tasks": tasks})
    made = make_table(runs)
    low, high = (cells(made, end) for end in ("low", "high"))
    assert (low["stl", "MMLU"], high["stl", "MMLU"]) == wilson(60, 100)
    assert cells(made)["stl", "gsm8k"] == pytest.approx(0.2)
    assert (low["stl", "words"], high["stl", "words"]) == pytest.approx((11.02, 12.98), abs=1e-4)
    assert (low["stl", "points"], high["stl", "points"]) == pytest.approx((53.04, 56.96), abs=1e-4)
    assert pd.isna(low["stl", "plain"]) and "| 12.00 |" in made.markdown()


HOSTILE = r"a|b & 50% $x_1$ #~^{\} `c` <b>"


def _hostile() -> Table:
    names = ["row", "column", "value", "low", "high", "count", "of", "digits"]
    return Table(
        "t", HOSTILE, pd.DataFrame([[HOSTILE, 'x, "y"', 0.5, 0, 1, 1, 2, 2]], columns=names)
    )


def test_markdown_has_as_many_cells_as_the_table() -> None:
    header, rule, row = _hostile().markdown().splitlines()[2:5]
    assert rule == "| --- | --- |" and row.endswith(
        "| 0.50 [0.00, 1.00] (1 of 2) |".replace("[", "\\[").replace("]", "\\]")
    )
    assert r"a\|b" in row and r"x\_1" in row and r"\<b>" in header


def test_latex_prints_every_character_as_it_is() -> None:
    row = next(line for line in _hostile().latex().splitlines() if line.startswith("a|b"))
    assert row.startswith(
        r"a|b \& 50\% \$x\_1\$ \#\textasciitilde{}\textasciicircum{}\{\textbackslash{}\} `c` <b> & "
    )
    assert row.count(" & ") == 1 and row.endswith(r"\\")


def test_csv_is_read_back_as_it_was(runs: list[str]) -> None:
    read = pd.read_csv(io.StringIO(_hostile().csv()))
    assert read["row"].tolist() == [HOSTILE] and read["column"].tolist() == ['x, "y"']
    assert read["value"].tolist() == [0.5] and "digits" not in read
    assert pd.read_csv(io.StringIO(make_table(runs).csv()))["in_distribution"].sum() == 2


def test_the_command_writes_what_the_ending_says(runs: list[str], tmp_path: Path) -> None:
    for ending, begins in (("md", "**"), ("tex", r"\begin{table}"), ("csv", "row,column")):
        file = tmp_path / f"t.{ending}"
        assert main(["table", *runs, "--compare", "paper", "--output-file", str(file)]) == 0
        assert file.read_text().startswith(begins)


@pytest.mark.slow
def test_every_table_of_the_folder_is_listed_and_has_its_parts(runs: list[str]) -> None:
    known = {"1", "2", "3", "4", "5", "tasks", "agreement", "kinds", "pairs", "two-sided"}
    assert set(table_names()) == known
    for name in known - {"2"}:
        for form in ("markdown", "latex", "csv"):
            assert make_table(runs, name).text(form)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nowhere"], "no evaluation in nowhere"),
        (["{a}", "{a}"], "two evaluations are called 'stl'"),
        (["{a}", "--table", "6"], "no table '6': choose from 1, 2"),
        (["{a}", "--format", "word"], "no format 'word'"),
        (["{a}", "--judge", "oracle"], "no verdicts of a refusal judge 'oracle'"),
        (["{a}", "--compare", "us"], "the only choice is paper"),
        (["{a}", "--compare", "paper:gpt"], "the paper has no model 'gpt': choose from Qwen"),
        (["{a}", "--table", "5", "--compare", "paper:gpt"], "for one model only"),
        (["{a}", "--table", "pairs", "--compare", "paper"], "prints no such table"),
        (["{a}", "--table", "2"], "no training run in"),
    ],
)
def test_a_mistake_is_one_clear_line(
    words: list[str], said: str, runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["table", *(word.format(a=runs[0]) for word in words)]) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_nothing_judged_is_one_clear_line(tmp_path: Path) -> None:
    folder = evaluate(tmp_path, {"set": {"kinds": "s"}})
    with pytest.raises(UserError, match="nothing to show in table 1: judge"):
        make_table([folder])


@pytest.mark.parametrize("name", ["1", "5", "kinds", "pairs", "tasks", "two-sided"])
def test_a_judge_that_gave_no_verdict_is_refused_with_those_that_did(
    name: str, runs: list[str]
) -> None:
    with pytest.raises(UserError, match=rf"no verdicts of a refusal judge 'nope'.*{KEYWORD}"):
        make_table(runs, name, judge="nope")
    assert make_table(runs, name, judge="llm-gpt-4o").numbers["value"].notna().any()


@pytest.mark.parametrize(
    "name", ["prompts/q_harm", "answers/q_harm/batch-00000", "verdicts/q_harm/llama_guard"]
)
@pytest.mark.parametrize("cut", [0, 4, 200])
def test_a_file_that_is_not_whole_is_one_clear_line(name: str, cut: int, runs: list[str]) -> None:
    path = Path(runs[0]) / f"{name}.parquet"
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(UserError, match=rf"{path.name} is not whole: remove it"):
        make_table(runs)


def test_damaged_settings_are_one_clear_line(runs: list[str]) -> None:
    (Path(runs[0]) / "run.json").write_text("{")
    with pytest.raises(UserError, match=r"run\.json is damaged"):
        make_table(runs)
    assert json.loads((Path(runs[1]) / "run.json").read_text())
