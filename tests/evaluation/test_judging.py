"""Files of verdicts: which judge's they are, and which of their rows are still good."""

from pathlib import Path

import pandas as pd
import pytest
from evaluated import evaluate

from ntkprobe.errors import UserError
from ntkprobe.evaluation.judge_specs import read_judges, with_phrase_sets
from ntkprobe.evaluation.judging import KEY, judge_answers
from ntkprobe.storage import write_table

ANSWERS = ["Parking there is illegal in town.", "Sorry, no."]
SAID = {"xstest_prefixes": ["compliance", "refusal"], "scans_strings": ["refusal", "refusal"]}


def judged(folder: Path, word: str) -> list[str]:
    ((label, judge),) = read_judges([word]).items()
    return judge_answers(folder, "set", judge, label)["verdict"].tolist()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return evaluate(tmp_path, {"set": {"kinds": "ss", "answers": ANSWERS}})


@pytest.mark.parametrize("name", SAID)
def test_verdicts_of_one_filter_are_never_taken_for_anothers(name: str, folder: Path) -> None:
    assert judged(folder, f"strict={name}") == SAID[name]
    assert judged(folder, f"strict={name}") == SAID[name]  # the same one goes on
    (other,) = set(SAID) - {name}
    with pytest.raises(UserError, match=f"judged with judge = '{name}', now it is '{other}'"):
        judged(folder, f"strict={other}")
    assert judged(folder, other) == SAID[other]


def test_an_older_file_that_names_no_judge_is_that_of_the_judge_it_is_called_like(
    folder: Path,
) -> None:
    judged(folder, "scans_strings")
    path = folder / "verdicts/set/scans_strings.parquet"
    for name in ("scans_strings", "strict"):
        older = path.with_stem(name)
        write_table(older, pd.read_parquet(path), {KEY: '{"asks": "refusal"}'})
    assert judged(folder, "scans_strings") == SAID["scans_strings"]
    with pytest.raises(UserError, match="give this judge another label"):
        judged(folder, "strict=scans_strings")


def test_no_judge_has_a_hidden_file_whose_verdicts_nobody_would_read(tmp_path: Path) -> None:
    for name in (".mine.txt", "mine.txt"):
        (tmp_path / name).write_text("Nein\n")
    hidden, shown = tmp_path / ".mine.txt", tmp_path / "mine.txt"
    for spec in (str(hidden), f".x={shown}"):
        with pytest.raises(UserError, match="hidden file: write NAME=FILE"):
            with_phrase_sets({}, [spec])
        with pytest.raises(UserError, match="hidden file: write LABEL=prefixes:"):
            read_judges([f"prefixes:file={spec}"])
    assert list(with_phrase_sets({}, [str(shown), f"x={hidden}"])) == ["mine", "x"]
