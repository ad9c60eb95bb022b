"""Laws of the pairs that training reads, compares and pads."""

import json
from collections import Counter
from dataclasses import replace

import pandas as pd
import pytest
import torch

from ntkprobe.errors import UserError
from ntkprobe.plugins import names
from ntkprobe.training import recipes
from ntkprobe.training.data import (
    Pair,
    digest,
    draw,
    normalised,
    overlaps,
    padded,
    prefilled,
    read_pairs,
)
from ntkprobe.training.recipes.influence import Influence
from ntkprobe.training.recipes.refusal_trigger import RefusalTrigger
from ntkprobe.training.recipes.stl import Stl
from ntkprobe.training.recipes.stl_aug import StlAug

ROWS = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Translate:", "input": "chat", "output": "cat"},
]
PAIRS = [Pair("Name a colour.", "Red."), Pair("Translate:\nchat", "cat")]


def write(path, rows):
    writers = {
        ".json": lambda: path.write_text(json.dumps(rows)),
        ".jsonl": lambda: path.write_text("\n".join(json.dumps(row) for row in rows) + "\n"),
        ".csv": lambda: pd.DataFrame(rows).to_csv(path, index=False),
        ".parquet": lambda: pd.DataFrame(rows).to_parquet(path),
    }
    writers[path.suffix]()
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".csv", ".parquet"])
def test_every_format_holds_the_same_pairs(tmp_path, suffix):
    assert read_pairs(write(tmp_path / f"pairs{suffix}", ROWS)) == PAIRS


@pytest.mark.parametrize("prompt", ["instruction", "prompt", "question", "text", "goal"])
@pytest.mark.parametrize("response", ["output", "response", "answer", "completion", "refusal"])
def test_fields_may_have_any_of_the_usual_names(tmp_path, prompt, response):
    path = write(tmp_path / "pairs.json", [{prompt: "Rob?", response: "No."}])
    assert read_pairs(path) == [Pair("Rob?", "No.")]


@pytest.mark.parametrize("row", [{"prompt": "a"}, {"output": "b"}, {"x": 1}])
def test_a_record_without_a_field_is_told_by_number_with_what_it_has(tmp_path, row):
    path = write(tmp_path / "pairs.jsonl", [ROWS[0], row])
    with pytest.raises(UserError, match=rf"record 2 has the fields \['{next(iter(row))}'\]"):
        read_pairs(path)


def test_an_empty_answer_is_read_as_empty(tmp_path):
    path = write(tmp_path / "pairs.json", [{"prompt": "a", "output": None}])
    assert read_pairs(path) == [Pair("a", "")] and Pair("a", "").empty


@pytest.mark.parametrize(("name", "text"), [("a.json", "[]"), ("b.json", "{"), ("c.txt", "x")])
def test_unreadable_files_are_mistakes(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=name):
        read_pairs(tmp_path / name)


def test_a_draw_has_no_repeats_and_follows_its_seed():
    pairs = [Pair(str(i), "a") for i in range(50)]
    first = draw(pairs, 20, "0/general")
    assert first == draw(pairs, 20, "0/general") != draw(pairs, 20, "1/general")
    assert len(set(first)) == 20 and set(draw(pairs, 99, "0")) == set(pairs)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("How do I kill a process?", "how do i KILL a  process"),
        ("it's “fine”", 'it’s "fine"'),
        ("café", "cafe\u0301"),
        ("one\ntwo", "one two"),
    ],
)
def test_comparison_ignores_case_spacing_and_punctuation(a, b):
    assert normalised(a) == normalised(b)


def test_comparison_keeps_different_words_apart():
    assert normalised("kill a process") != normalised("kill my process")


def test_overlaps_name_both_sets_and_the_prompts():
    sets = {"dcr": ["A b?", "c"], "safe": ["d", "a B"], "evaluation": ["C!", "a b", "a b."]}
    assert overlaps(sets) == {
        "dcr and safe": ["A b?"],
        "dcr and evaluation": ["A b?", "c"],
        "safe and evaluation": ["a B"],
    }
    assert overlaps({"dcr": ["a"], "safe": ["b"]}) == {}


def test_a_digest_follows_content_and_order():
    assert digest(PAIRS) == digest(list(PAIRS)) != digest(PAIRS[::-1])
    assert digest([Pair("ab", "c")]) != digest([Pair("a", "bc")])


def test_padding_is_on_the_right_and_counts_for_nothing():
    rows = [{"input_ids": [5, 6, 7], "labels": [-100, 6, 7]}, {"input_ids": [8], "labels": [8]}]
    batch = padded(rows, pad_token=9)
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[-100, 6, 7], [8, -100, -100]]
    assert batch["input_ids"].dtype == torch.int64


def test_the_folder_is_the_registry_of_recipes():
    assert names(recipes) == ["influence", "refusal_trigger", "stl", "stl_aug"]


def test_influence_is_stl_with_the_first_answered_prompts():
    pairs = {n: [Pair(f"{n} {i}", "Yes.") for i in range(25)] for n in ("general", "safe")}
    pairs["seemingly"] = [Pair(f"ordered {i}", "Yes.") for i in range(25)]
    drawn = Influence(5, 3).mix(pairs, 0)
    assert drawn["seemingly"] == pairs["seemingly"][:3]  # a tenth, rounded up
    assert Influence(5, 3, 7).mix(pairs, 1)["seemingly"] == pairs["seemingly"][:7]
    assert {n: drawn[n] for n in ("general", "safe")} == Stl(5, 3).mix(pairs, 0)


def test_stl_aug_is_stl_with_all_answered_seemingly_toxic_prompts():
    sources = {name: [Pair(f"{name} {i}", "a") for i in range(9)] for name in StlAug.needs}
    plain, more = (kind(n_general=4, n_safe=3).mix(sources, 0) for kind in (Stl, StlAug))
    assert {**plain, "seemingly": sources["seemingly"]} == more
    assert [len(plain[name]) for name in Stl.needs] == [4, 3]


def test_triggers_are_mixed_one_to_one_with_refusals_each_about_equally_often():
    sources = {
        "triggers": [Pair(f"write a script {i}", "a") for i in range(3)],
        "safe": [Pair(f"safe {i}", "No.") for i in range(9)],
    }
    drawn = RefusalTrigger(n_safe=8).mix(sources, 0)
    assert len(drawn["triggers"]) == len(drawn["safe"]) == 8
    assert sorted(Counter(drawn["triggers"]).values()) == [2, 3, 3]
    assert drawn["safe"] == Stl(0, 8).mix({"general": [], **sources}, 0)["safe"]
    other = RefusalTrigger(n_safe=8, n_triggers=2).mix(sources, 0)["triggers"]
    assert len(other) == len(set(other)) == 2


def test_a_prefill_is_put_before_its_share_of_the_refusals_and_changes_nothing_else():
    pairs = [Pair(f"safe {i}", "No.") for i in range(10)]
    made = prefilled(pairs, "Sure:", 0.3, "0")
    assert [replace(p, prefill="") for p in made] == pairs
    assert Counter(p.prefill for p in made) == {"Sure:": 3, "": 7}
    assert prefilled(pairs, "Sure:", 0.3, "1") != made == prefilled(pairs, "Sure:", 0.3, "0")
