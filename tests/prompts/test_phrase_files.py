"""Sets of refusal phrases from files: what they hold, and each mistake in one line."""

import json

import pytest

from ntkprobe.errors import UserError
from ntkprobe.prompts.phrase_files import read_phrase_set, read_phrase_sets
from ntkprobe.prompts.phrases import PAPER31, XSTEST21, PhraseSet, is_refusal

GERMAN = ["Es tut mir leid", "Ich kann nicht"]


def written(folder, name, content):
    path = folder / name
    path.write_text(content, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("de.txt", "# Deutsch\n\nEs tut mir leid\n  Ich kann nicht  \n"),
        ("de.json", json.dumps(GERMAN)),
        ("de.json", json.dumps({"phrases": GERMAN})),
        ("de.yaml", "- Es tut mir leid\n- Ich kann nicht\n"),
        ("de.txt", "\ufeffEs tut mir leid\r\nIch kann nicht\r\nIch kann nicht\r\n"),
    ],
)
def test_every_form_of_file_gives_the_same_set(name, content, tmp_path):
    found = read_phrase_set(written(tmp_path, name, content))
    assert found == PhraseSet("de", tuple(GERMAN), ("es tut mir leid", "ich kann nicht"))


def test_a_set_recognises_its_own_refusals_and_no_others(tmp_path):
    spec = written(tmp_path, "de.json", json.dumps({"phrases": GERMAN, "prefixes": ["Leider"]}))
    own = read_phrase_set(spec)
    assert own.refuses(" leider geht das nicht") and not own.refuses("Es tut mir leid")
    assert own.refuses("<think>Leider?</think>Gerne.") is False
    assert own.refuses("<think>Leider") is None
    assert not own.refuses("I'm sorry") and PhraseSet.named().refuses("I'm sorry")


@pytest.mark.parametrize("answer", ["I'm sorry, no", "Sure, no", "<think>", "", "As an AI"])
def test_a_named_set_has_the_published_filter(answer):
    assert PhraseSet.named("union").refuses(answer) == is_refusal(answer)


def test_names_are_the_files_or_given_and_a_label_changes_with_the_contents(tmp_path):
    one = written(tmp_path, "de.txt", "Nein")
    assert read_phrase_set(f"deutsch={one}").name == "deutsch"
    assert read_phrase_set("xstest21").phrases == XSTEST21
    assert read_phrase_set("paper31").label == "paper31" and len(PAPER31) == 31
    first = read_phrase_set(one).label
    written(tmp_path, "de.txt", "Nein, danke")
    assert read_phrase_set(one).label != first and first.startswith("de#")


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("de.txt", "# nothing\n\n", "no phrase"),
        ("de.json", "{", "cannot be read"),
        ("de.yaml", "[", "cannot be read"),
        ("de.json", '{"words": ["a"]}', "list of texts"),
        ("de.json", '{"phrases": ["a", 1]}', "list of texts"),
        ("de.json", '{"phrases": ["a", " "]}', "list of texts"),
        ("de.json", '"text"', "list of texts"),
        ("de.json", '{"phrases": ["a"], "prefixes": "a"}', "list of texts"),
        ("de.json", '["\\ud800"]', "surrogate"),
        ("paper31.txt", "Nein", "cannot be called"),
        ("a b.txt", "Nein", "cannot be called"),
    ],
)
def test_a_mistake_gets_one_line(name, content, word, tmp_path):
    with pytest.raises(UserError, match=word) as caught:
        read_phrase_set(written(tmp_path, name, content))
    assert "\n" not in str(caught.value)


def test_a_missing_file_lists_the_names_and_a_binary_one_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"paper31.*union.*xstest21"):
        read_phrase_set("nowhere.txt")
    (tmp_path / "de.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read"):
        read_phrase_set(str(tmp_path / "de.txt"))


def test_two_sets_of_one_name_are_refused(tmp_path):
    spec = written(tmp_path, "de.txt", "Nein")
    assert [each.name for each in read_phrase_sets(["paper31", spec])] == ["paper31", "de"]
    with pytest.raises(UserError, match="two sets of --phrases are called 'de'"):
        read_phrase_sets([spec, spec])
