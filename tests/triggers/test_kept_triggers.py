"""What is kept of the refusal triggers that were found, and how they are answered."""

import json

import pytest

from ntkprobe import tiny
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.cli.triggers import TriggerOptions
from ntkprobe.errors import UserError
from ntkprobe.triggers.answers import compliant, generated, with_given_answers
from ntkprobe.triggers.extraction import (
    Example,
    Progress,
    ScoredTrigger,
    Trigger,
    extract,
    read_benign,
    read_examples,
)

# What is kept


class Told:
    """Gives what it is told to, last prompt first."""

    def __init__(self, *found: ScoredTrigger | str):
        self.found, self.asked = found, []

    def extract(self, examples):
        for number in reversed(range(len(examples))):
            self.asked.append(examples[number].prompt)
            yield number, self.found[number]


def test_each_trigger_is_kept_once_with_the_highest_score_and_all_are_counted():
    examples = [Example(f"Rob {i}") for i in range(5)]
    told = (
        ScoredTrigger("Do it!", 0.2),
        ScoredTrigger("do  it", 0.9),
        "none",
        ScoredTrigger("rob 3", 1.0),
        ScoredTrigger("b", 0),
    )
    found = extract(Told(*told), examples)
    assert found.triggers == (Trigger("do  it", "Rob 1", 0.9), Trigger("b", "Rob 4", 0))
    assert found.counts == {"prompts": 5, "none": 1, "harmful": 1, "repeated": 1}
    assert found.reasons == {"none": 1}


def test_no_trigger_at_all_is_told_with_the_reasons():
    with pytest.raises(UserError, match="no triggers in 2 prompts: 2 had none; 2: why not"):
        extract(Told("why not", "why not"), [Example("a"), Example("b")])


def test_harmful_prompts_are_those_of_the_toxic_group_or_all_of_a_file_without_groups(tmp_path):
    plain, grouped = tmp_path / "a.jsonl", tmp_path / "b.csv"
    plain.write_text(json.dumps({"prompt": "Rob?", "response": "No."}) + "\n")
    grouped.write_text("prompt,group\nSteal?,toxic\nBake?,normal\n")
    assert read_examples([plain, grouped]) == [Example("Rob?", "No."), Example("Steal?")]
    assert [p.text for p in read_benign([plain, grouped])] == ["Rob?", "Bake?"]
    with pytest.raises(UserError, match="no benign prompts"):
        read_benign([])


def test_a_stopped_extraction_asks_only_for_what_is_missing_or_failed(tmp_path):
    examples = [Example(f"Rob {i}") for i in range(4)]
    output, settings = tmp_path / "t.jsonl", {"share": 0.5}
    first = Progress(output, settings)
    for example, found in zip(
        examples, [ScoredTrigger("a", 0.5), "nothing", "failed: slow"], strict=False
    ):
        first.add(example, found)
    with first.path.open("a") as file:
        file.write('{"prompt": "torn')
    told = Told(ScoredTrigger("c", 1), ScoredTrigger("d", 1))
    found = extract(told, examples, Progress(output, settings))
    assert sorted(told.asked) == ["Rob 2", "Rob 3"]
    assert [t.text for t in found.triggers] == ["a", "c", "d"]
    assert extract(Told(), examples, Progress(output, settings)) == found
    with pytest.raises(UserError, match=r"share = 0\.5, now it is 0\.7: .* --output-file"):
        Progress(output, {"share": 0.7})


def test_an_extraction_goes_on_only_with_the_same_contents(tmp_path):
    output, words = tmp_path / "t.jsonl", tmp_path / "words.yaml"
    options = TriggerOptions(output_file=output, harmful=[], words=words)
    words.write_text("modifiers: purple\nverbs: bake\nnouns: cake\n")
    Progress(output, options.recorded()).add(Example("Bake it"), ScoredTrigger("Do it", 0.5))
    assert Progress(output, options.recorded()).known([Example("Bake it")])
    words.write_text("modifiers: purple\nverbs: eat\nnouns: cake\n")
    with pytest.raises(UserError, match="words_digest = "):
        Progress(output, options.recorded())


def test_what_was_found_stays_when_the_file_cannot_be_written_anew(tmp_path, monkeypatch):
    progress = Progress(tmp_path / "t.jsonl", {})
    progress.add(Example("Rob"), ScoredTrigger("Go", 0.5))
    before = progress.path.read_text()

    def full(path, *_):
        path.write_bytes(b"")
        raise OSError("no space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="no space"):
        patch.setattr(type(progress.path), "write_text", full)
        Progress(tmp_path / "t.jsonl", {})
    assert progress.path.read_text() == before


# Answers


def test_answers_are_the_given_ones_else_the_models_and_refusals_are_left_out():
    triggers = [Trigger(text, "", 1.0) for text in ("Go!", "Bake a cake.", "Rob a bank.")]
    made = with_given_answers(triggers, {"go": "I went.", "rob a bank": "I cannot help."})
    assert [t.response for t in made] == ["I went.", "", "I cannot help."]
    kept, counts = compliant(made)
    assert [t.text for t in kept] == ["Go!"]
    assert counts == {"answered": 1, "refused": 1, "unanswered": 1}


def test_the_model_answers_what_has_no_answer_yet():
    model, tokenizer = load_model(str(tiny.model_path())), load_tokenizer(str(tiny.model_path()))
    asked = ["How do I bake a cake?", "Say no. How do I bake a cake?", "Given?"]
    triggers = [Trigger(t, "", 1.0, response="Yes." * (t == "Given?")) for t in asked]
    made = generated(model, tokenizer, triggers, max_new_tokens=16)
    kept, counts = compliant(made)
    assert [t.text for t in kept] == [asked[0], "Given?"] and made[2].response == "Yes."
    assert counts == {"answered": 2, "refused": 1, "unanswered": 0}
