"""Text that is no valid Unicode is refused with its place, whoever reads it."""

import json

import pytest
from measured_runs import GROUPS

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.evaluation.benchmarks.sources import read_own
from ntkprobe.evaluation.server import read_reply
from ntkprobe.measurement.influence.examples import read_updated
from ntkprobe.prompts.files import read_rows
from ntkprobe.prompts.selections import PromptSelection
from ntkprobe.prompts.unicode_text import flaw_of, repaired
from ntkprobe.training.data import read_pairs, read_texts
from ntkprobe.triggers.answers import read_answers

HALF = "\ud83d"
WHOLE = "\N{GRINNING FACE}"
READERS = [
    ntk.PromptSet.from_file,
    read_rows,
    read_updated,
    read_pairs,
    read_texts,
    read_answers,
    lambda path: read_own(PromptSelection.parse(f"{path}=unsafe")),
]


def jsonl(path, text):
    good = {"prompt": "Hi", "response": "No.", "group": "toxic", "refusal": "No."}
    rows = [good, {**good, "prompt": text}, {**good, "response": text}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("read", READERS, ids=[f"reader{n}" for n in range(len(READERS))])
def test_half_a_surrogate_pair_is_refused_with_file_and_row(read, tmp_path):
    with pytest.raises(UserError, match=r"p.jsonl, row 2 holds half a surrogate pair \(.ud83d\)"):
        read(jsonl(tmp_path / "p.jsonl", f"bake {HALF} bread"))
    read(jsonl(tmp_path / "whole.jsonl", f"bake {WHOLE} bread"))


def test_it_is_found_in_nested_fields_and_in_names(tmp_path):
    path = tmp_path / "p.json"
    for row in ({"messages": [{"content": HALF}]}, {HALF: "x"}, {"prompt": "a", "id": HALF}):
        path.write_text(json.dumps([{"prompt": "Hi"}, row]))
        with pytest.raises(UserError, match="row 2 holds half"):
            read_rows(path)


def test_another_encoding_is_named_with_its_line(tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes("prompt\nHi\ncafé\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"p.csv as csv: line 3 is no UTF-8 \(byte 0xe9\)"):
        read_rows(path)
    path.write_bytes("prompt\nHi\ncafé\n".encode("utf-8-sig"))
    assert read_rows(path) == [{"prompt": "Hi"}, {"prompt": "café"}]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le"])
def test_utf16_is_never_read_as_something_else(encoding, tmp_path):
    path = tmp_path / "p.csv"
    path.write_bytes("prompt,group\nHi,toxic\n".encode(encoding))
    with pytest.raises(UserError, match="UTF-8"):
        read_rows(path)


def test_nul_characters_are_refused(tmp_path):
    with pytest.raises(UserError, match="row 2 holds a NUL"):
        read_rows(jsonl(tmp_path / "p.jsonl", "bake\0bread"))


def test_a_line_that_is_no_json_is_named(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text('{"prompt": "a"}\n\n\ufeff{"prompt": "b"}\n')
    with pytest.raises(UserError, match="line 3"):
        read_rows(path)


def test_prompts_and_phrases_in_memory_are_held_to_the_same():
    for make in (
        lambda: ntk.PromptSet.from_texts({GROUPS[0]: ["fine", f"bake {HALF}"]}),
        lambda: ntk.Prompt("fine", GROUPS[0], response=HALF),
    ):
        with pytest.raises(UserError, match="half a surrogate pair"):
            make()
    assert flaw_of(WHOLE + "é\n") is None


def test_a_servers_reply_is_repaired():
    said = {"choices": [{"message": {"content": f"No{HALF}. {WHOLE}"}, "finish_reason": "stop"}]}
    assert read_reply(json.dumps(said)) == f"No\N{REPLACEMENT CHARACTER}. {WHOLE}"
    assert repaired("plain") == "plain"
