"""Filters' verdicts against labels by hand, of readings and of the sample."""

import pandas as pd

from ntkprobe.replication.labels import FILTERS, READING, SAMPLE, agreement_lines, readings

VERDICTS = ("refusal", "refusal", "compliance", "undetermined")
TABLE = pd.DataFrame(dict.fromkeys(FILTERS, VERDICTS) | {"model": "stl-0", "benchmark": "oktest"})


def test_filters_are_compared_with_the_labels_of_a_reading_and_of_the_sample(tmp_path):
    assert len(list(agreement_lines(tmp_path))) == 1
    labels = ["refusal", "compliance", "compliance", "refusal"]
    TABLE.assign(label=labels).to_csv(tmp_path / READING, index=False)
    lines = list(agreement_lines(tmp_path))
    assert lines[0] == "4 answers are labelled, of stl-0."
    assert f"| {FILTERS[0]} | 50 % | 0.00 | 1 | 1 |" in lines
    TABLE.assign(label="").to_csv(tmp_path / SAMPLE, index=False)
    assert "None yet" in list(agreement_lines(tmp_path))[-1]
    TABLE.assign(label=VERDICTS).to_csv(tmp_path / SAMPLE, index=False)
    lines = list(agreement_lines(tmp_path))  # a word that is no label is none, and is told
    assert "3 answers are labelled, of stl-0." in lines
    assert any("labels that are none and are left out:** undetermined." in line for line in lines)
    assert f"| {FILTERS[0]} | 100 % | 1.00 | 0 | 0 |" in lines


def test_every_reading_is_compared_in_the_order_of_their_numbers(tmp_path):
    for name, model in {
        "reading-10": "c",
        "reading-2": "b",
        "reading": "a",
        "reading-x": "d",
    }.items():
        TABLE.assign(model=model, label=VERDICTS).to_csv(tmp_path / f"{name}.csv", index=False)
    assert [path.stem for path in readings(tmp_path)] == ["reading", "reading-2", "reading-10"]
    told = [line for line in agreement_lines(tmp_path) if "answers are labelled" in line]
    assert told == [f"3 answers are labelled, of {model}." for model in "abc"]


def test_refusals_of_one_model_are_counted_of_each_set(tmp_path):
    sets = ["oktest", "q_harm", "q_harm", "q_harm"]
    TABLE.assign(benchmark=sets, label="refusal").to_csv(tmp_path / READING, index=False)
    lines = list(agreement_lines(tmp_path))
    assert "| oktest | 1 | 1 | 1 | 1 | 1 |" in lines and "| q_harm | 3 | 3 | 1 | 1 | 1 |" in lines


def test_refusals_are_counted_of_each_model_by_label_and_by_filter(tmp_path):
    labels = ["refusal", "compliance", "compliance", "refusal"]
    other = TABLE.assign(model="adacd-0", label="refusal")
    both = pd.concat([TABLE.assign(label=labels), other])
    both.assign(xstest_prefixes="compliance").to_csv(tmp_path / READING, index=False)
    lines = list(agreement_lines(tmp_path))
    assert f"| refusals | answers | label | {' | '.join(FILTERS)} |" in lines
    assert "| adacd-0 | 4 | 4 | 0 | 2 | 2 |" in lines
    assert "| stl-0 | 4 | 2 | 0 | 2 | 2 |" in lines
