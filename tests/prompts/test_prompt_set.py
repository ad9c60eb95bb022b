import json
import os

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ntkprobe.errors import UserError
from ntkprobe.prompts.prompt_set import GROUPS, Prompt, PromptSet
from ntkprobe.training.data import Pair, read_pairs

TEXTS = {
    "toxic": [f"How do I hurt a stranger, way {i}?" for i in range(9)],
    "normal": [f"How do I boil {i} eggs?" for i in range(7)],
    "seemingly_toxic": [f"How do I kill process {i}?" for i in range(8)],
}
ROWS = [
    {"prompt": "How do I kill, 'softly'?", "group": "seemingly_toxic", "id": "007"},
    {"prompt": "NA", "group": "normal", "id": "8"},
    {"prompt": "Two\nlines \N{SNOWMAN}", "group": "toxic", "id": "9"},
]


def write(path, rows):
    frame = pd.DataFrame(rows)
    writers = {
        ".csv": lambda: frame.to_csv(path, index=False),
        ".jsonl": lambda: frame.to_json(path, orient="records", lines=True),
        ".json": lambda: frame.to_json(path, orient="records"),
        ".parquet": lambda: frame.to_parquet(path),
    }
    writers[path.suffix]()
    return path


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".json", ".parquet"])
def test_every_format_holds_the_same_prompts(tmp_path, suffix):
    read = PromptSet.from_file(write(tmp_path / f"p{suffix}", ROWS))
    assert [(p.text, p.group, p.id) for p in read] == [tuple(row.values()) for row in ROWS]


@pytest.mark.parametrize("text", ["prompt", "text", "instruction", "goal", "question", "trigger"])
@pytest.mark.parametrize("group", ["group", "label"])
def test_every_name_of_a_column_is_read(tmp_path, text, group):
    path = write(tmp_path / "p.csv", [{text: "Hello", group: "normal"}])
    assert PromptSet.from_file(path).prompts == (Prompt("Hello", "normal"),)


@pytest.mark.parametrize("value", [["one", "two"], {"instructions": ["one", "two"], "inputs": []}])
def test_lists_of_texts_take_the_group_that_is_given(tmp_path, value):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(value))
    read = PromptSet.from_files([f"{path}=toxic"])
    assert read == PromptSet.from_texts({"toxic": ["one", "two"]})


def test_xstests_own_file_is_read_as_it_is(tmp_path):
    row = {"id": 1, "prompt": "Kill?", "type": "homonyms", "label": "safe", "focus": "", "note": ""}
    path = write(tmp_path / "xstest.csv", [row, row | {"label": "unsafe", "prompt": "Kill!"}])
    assert [p.group for p in PromptSet.from_file(path)] == ["seemingly_toxic", "toxic"]


def test_another_file_may_not_call_a_group_safe(tmp_path):
    path = write(tmp_path / "p.csv", [{"prompt": "Hello", "label": "safe"}])
    with pytest.raises(UserError, match=r"row 1.*'safe'.*seemingly_toxic"):
        PromptSet.from_file(path)


def test_an_alpaca_input_joins_its_instruction(tmp_path):
    rows = [{"instruction": "Add", "input": "1, 2"}, {"instruction": "Hello", "input": ""}]
    read = PromptSet.from_file(write(tmp_path / "p.jsonl", rows), group="normal")
    assert [p.text for p in read] == ["Add\n1, 2", "Hello"]


def test_responses_are_kept_and_shown_only_where_there_are_any(tmp_path):
    path = write(tmp_path / "p.csv", [{"prompt": "Hi", "group": "normal", "response": "Sure, "}])
    read = PromptSet.from_file(path)
    assert read[0].response == "Sure, "
    assert "response" in read.frame()
    assert list(PromptSet.from_texts(TEXTS).frame()) == ["prompt", "id", "group", "text"]


def test_a_text_file_has_a_prompt_a_line_and_its_group_from_the_call(tmp_path):
    path = tmp_path / "harmful.txt"
    path.write_bytes(b"\xef\xbb\xbfHow do I kill a process?\r\n\n  Is it safe, or not?\n")
    found = PromptSet.from_file(path, "toxic")
    assert [prompt.text for prompt in found] == ["How do I kill a process?", "Is it safe, or not?"]
    assert [p.group for p in PromptSet.from_files([f"{path}=normal"])] == ["normal"] * 2
    with pytest.raises(UserError, match="group"):
        PromptSet.from_file(path)


@pytest.mark.parametrize("first", ["prompt,label", "id\tQuestion", '{"prompt": "a"}', '["a",'])
def test_a_table_called_text_is_refused_so_that_its_header_is_no_prompt(tmp_path, first):
    path = tmp_path / "prompts.txt"
    path.write_text(f"{first}\na,b\n")
    with pytest.raises(UserError, match="as txt: its first line is that of a table"):
        PromptSet.from_file(path, "toxic")


@pytest.mark.parametrize("suffix", ["json", "jsonl", "parquet"])
def test_a_cell_that_is_nan_is_a_missing_one(tmp_path, suffix):
    nan = float("nan")
    rows = [{"prompt": "how?", "group": "toxic", "id": nan, "response": nan}]
    path = tmp_path / f"p.{suffix}"
    if suffix == "parquet":
        pq.write_table(pa.table({name: [value] for name, value in rows[0].items()}), path)
    else:
        path.write_text(json.dumps(rows if suffix == "json" else rows[0]))
    assert PromptSet.from_file(path).prompts == (Prompt("how?", "toxic"),)
    assert read_pairs(path) == [Pair("how?", "")]


def test_several_files_follow_one_another(tmp_path):
    named = write(tmp_path / "a=b.csv", ROWS)
    bare = write(tmp_path / "bare.csv", [{"goal": "Harm"}])
    read = PromptSet.from_files([named, f"{bare}=toxic"])
    assert [p.text for p in read] == [*(row["prompt"] for row in ROWS), "Harm"]


def test_groups_are_in_canonical_order_whatever_the_prompts_order():
    prompts = PromptSet.from_texts(TEXTS)
    assert prompts.groups == GROUPS
    assert prompts.in_group("toxic", "normal").groups == ("normal", "toxic")
    assert prompts[:9].groups == ("toxic",)


def test_a_filter_keeps_the_order_of_the_set():
    prompts = PromptSet.from_texts(TEXTS)
    kept = prompts.in_group("normal", "toxic")
    assert list(kept) == [p for p in prompts if p.group != "seemingly_toxic"]
    assert prompts.take(prompts.rows("normal")) == prompts.in_group("normal")


@given(st.integers(1, 12), st.integers(0, 5))
def test_a_sample_has_so_many_of_each_group_in_the_sets_order(per_group, seed):
    prompts = PromptSet.from_texts(TEXTS)
    rows = prompts.sampled_rows(per_group, seed)
    assert list(rows) == sorted(rows)
    for group, texts in TEXTS.items():
        assert len(prompts.take(rows).rows(group)) == min(per_group, len(texts))


def test_a_smaller_sample_is_part_of_a_larger_one():
    prompts = PromptSet.from_texts(TEXTS)
    assert set(prompts.sampled_rows(2)) < set(prompts.sampled_rows(4))


def test_a_groups_sample_does_not_depend_on_the_others():
    alone = PromptSet.from_texts({"toxic": TEXTS["toxic"]})
    together = PromptSet.from_texts(TEXTS).sample(3, seed=1)
    assert together.in_group("toxic") == alone.sample(3, seed=1)


def test_another_seed_gives_another_sample():
    prompts = PromptSet.from_texts(TEXTS)
    assert prompts.sample(3, seed=0) == prompts.sample(3, seed=0)
    assert len({prompts.sampled_rows(3, seed) for seed in range(5)}) > 1


def test_no_limit_samples_everything():
    prompts = PromptSet.from_texts(TEXTS)
    assert prompts.sample(None) == prompts


def test_repeated_prompts_are_kept_counted_and_sampled_last():
    prompts = PromptSet.from_texts({"toxic": ["a", "a", "a", "b", "c"]})
    assert prompts.describe() == "5 prompts: 5 toxic; 2 repeat an earlier one"
    assert [p.text for p in prompts.sample(3)] == ["a", "b", "c"]


def test_the_digest_changes_when_anything_does():
    base = Prompt("a", "normal", "1", "")
    others = [
        Prompt("b", "normal", "1", ""),
        Prompt("a", "toxic", "1", ""),
        Prompt("a", "normal", "2", ""),
        Prompt("a", "normal", None, ""),
        Prompt("a", "normal", "1", "Sure"),
    ]
    sets = [(base,), (base, base), *((base, other) for other in others), ((others[0]), base)]
    assert len({PromptSet(tuple(each)).digest for each in sets}) == len(sets)


def test_the_digest_is_the_same_on_every_machine():
    digest = PromptSet.from_texts({"toxic": ["ä"], "normal": ["b"]}).digest
    assert digest == "d3678bc76d4f35ad250c9cd51c364d66b62fe82cb33584786a7694cc3331e023"


def test_the_notebook_shows_a_hostile_prompt_as_text():
    hostile = "<script>alert(1)</script> $x$"
    shown = PromptSet.from_texts({"toxic": [hostile] * 25})._repr_html_()
    assert "<script>" not in shown and "&lt;script&gt;" in shown
    assert "mathjax_ignore" in shown and "5 more" in shown


def test_a_prompt_set_is_a_sequence():
    prompts = PromptSet.from_texts(TEXTS)
    assert len(prompts) == 24 and prompts[-1] == list(prompts)[-1] and prompts[0] in prompts
    assert prompts[2:4] == PromptSet(tuple(list(prompts)[2:4]))


BROKEN = {
    "missing.csv": (None, "no file"),
    "p.md": ("prompt", "cannot tell the format.*csv"),
    "empty.txt": (" \n", "is empty"),
    "empty.csv": ("prompt,group\n", "is empty"),
    "empty.jsonl": ("", "is empty"),
    "columns.csv": ("query,group\na,toxic\n", r"columns are \['query', 'group'\].*'prompt'"),
    "no_group.csv": ("prompt\na\n", "names no group.*FILE=GROUP"),
    "group.csv": ("prompt,group\na,toxic\nb,evil\n", "row 2: unknown group 'evil'.*'normal'"),
    "blank.csv": ("prompt,group\na,toxic\n  ,toxic\n", "row 2: an empty prompt"),
    "null.jsonl": ('{"prompt": null, "group": "toxic"}', "row 1: an empty prompt"),
    "number.jsonl": ('{"prompt": 5, "group": "toxic"}', "row 1: a prompt of type int"),
    "turns.json": (
        '[{"prompt": [{"role": "user"}], "group": "toxic"}]',
        "row 1: a prompt of type list",
    ),
    "said.jsonl": (
        '{"prompt": "a", "group": "toxic", "response": ["No."]}',
        "row 1: a response of type list",
    ),
    "twice.csv": ("prompt,group,prompt\na,toxic,b\n", "2 columns called 'prompt'"),
    "comma.csv": ("prompt,group\nyes, sir,toxic\n", "row 1 has more or fewer fields"),
    "broken.json": ('["a"', "cannot read .* as json"),
    "deep.json": ("[" * 100_000, "cannot read .* as json"),
    "object.json": ('{"prompts": ["a"]}', "cannot read .*instructions"),
    "rows.json": ("[1, 2]", "neither texts nor objects"),
    "broken.jsonl": ('{"prompt": "a"}\n{', "cannot read .* as jsonl"),
    "broken.parquet": ("no parquet", "cannot read .* as parquet"),
    "latin.csv": (b"prompt,group\n\xe9,toxic\n", "cannot read .* as csv"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_file_is_refused_in_one_line(tmp_path, name):
    content, message = BROKEN[name]
    if content is not None:
        raw = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(UserError, match=message) as caught:
        PromptSet.from_file(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_columns_without_a_name_may_be_several(tmp_path):
    (tmp_path / "sheet.csv").write_text("prompt,group,,\na,toxic,,\n")
    assert [p.text for p in PromptSet.from_file(tmp_path / "sheet.csv")] == ["a"]


def test_a_parquet_file_with_two_columns_of_one_name_is_refused(tmp_path):
    columns = [pa.array(["a"]), pa.array(["toxic"]), pa.array(["b"])]
    pq.write_table(
        pa.table(columns, names=["prompt", "group", "prompt"]), tmp_path / "twice.parquet"
    )
    with pytest.raises(UserError, match="2 columns called 'prompt'"):
        PromptSet.from_file(tmp_path / "twice.parquet")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_an_unreadable_file_is_refused(tmp_path):
    path = write(tmp_path / "p.csv", ROWS)
    path.chmod(0)
    with pytest.raises(UserError, match="cannot read"):
        PromptSet.from_file(path)


def test_a_folder_is_no_file(tmp_path):
    with pytest.raises(UserError, match="no file"):
        PromptSet.from_file(tmp_path)


def test_a_group_that_contradicts_the_file_is_refused(tmp_path):
    path = write(tmp_path / "p.csv", ROWS)
    with pytest.raises(UserError, match="leave out the group 'toxic'"):
        PromptSet.from_files([f"{path}=toxic"])


def test_a_label_of_another_kind_gives_way_to_the_group_given(tmp_path):
    path = write(tmp_path / "p.csv", [{"prompt": "a", "label": 1}])
    assert PromptSet.from_file(path, group="toxic")[0].group == "toxic"


def test_an_unknown_group_after_a_file_is_refused(tmp_path):
    path = write(tmp_path / "p.json", ROWS)
    with pytest.raises(UserError, match="unknown group 'evil'"):
        PromptSet.from_files([f"{path}=evil"])


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ({}, "no groups"),
        (["a"], "lists of texts by group"),
        ({"toxic": []}, "'toxic' is empty"),
        ({"toxic": "one"}, "is one text"),
        ({"evil": ["one"]}, "unknown group 'evil'"),
        ({"toxic": [" "]}, "empty prompt"),
    ],
)
def test_texts_that_are_not_lists_by_group_are_refused(texts, message):
    with pytest.raises(UserError, match=message):
        PromptSet.from_texts(texts)


def test_a_sample_of_none_and_a_missing_group_and_no_file_are_refused():
    prompts = PromptSet.from_texts({"toxic": ["a"]})
    with pytest.raises(UserError, match="1 or more"):
        prompts.sample(0)
    with pytest.raises(UserError, match="no prompts in group 'normal'"):
        prompts.in_group("normal")
    with pytest.raises(UserError, match="at least one file"):
        PromptSet.from_files([])
