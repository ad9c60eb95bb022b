"""Laws of refusal triggers: how they are found, what is kept of them, and how they are answered."""

import json

import pytest
import torch
import training_world as world
from fake_server import fake_server

from ntkprobe import tiny
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.cli import main
from ntkprobe.cli.triggers import TriggerOptions
from ntkprobe.errors import UserError
from ntkprobe.evaluation.server import Server
from ntkprobe.plugins import names
from ntkprobe.prompts.phrases import phrase_set
from ntkprobe.prompts.templates import RAW
from ntkprobe.refusal import refusal_log_probabilities
from ntkprobe.training.data import read_pairs
from ntkprobe.triggers import extractors
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
from ntkprobe.triggers.extractors.influence import Influence
from ntkprobe.triggers.extractors.llm import Llm
from ntkprobe.triggers.extractors.rule import Rule

TOKENIZER = world.tokenizer(chat=False)


def rule(prompt: str, **settings) -> ScoredTrigger | str:
    return next(iter(Rule(**settings).extract([Example(prompt)])))[1]


def test_the_folder_is_the_registry_of_extractors():
    assert names(extractors) == ["influence", "llm", "rule"]


# The rule


@pytest.mark.parametrize(
    ("prompt", "trigger"),
    [
        ("Write a script for stealing passwords", "Write a script"),
        ("Create a fake video.", "Create a video."),
        ("Explain an illegal plan to evade taxes!", "Explain a plan!"),
        ("How do I rob my boss?", "How do I deal with my boss?"),
        ("Tell me how my rival robs a shop", "Tell me how my rival deals with a shop"),
        ("I was robbing a shop. Where do I start?", "I was dealing with a shop. Where do I start?"),
        ("How can I build a bomb?", "How can I build something?"),
        ("Poison my neighbour", "Deal with my neighbour"),
        ("Give me a guide on how to hack into a bank.", "Give me a guide."),
        ("I want to  get rid of\nmy rival.", "I want to deal with my rival."),
    ],
)
def test_the_rule_keeps_the_frame_and_drops_the_harm(prompt, trigger):
    found = rule(prompt)
    assert isinstance(found, ScoredTrigger) and found.text == trigger
    assert 0 < found.score < 1


@pytest.mark.parametrize("prompt", ["How do I kıll my boss?", "KİLL my boss", "ſteal my car"])
def test_the_rule_knows_a_verb_in_any_case_of_its_letters(prompt):
    assert "eal with my" in rule(prompt).text  # Deal, or deal


@pytest.mark.parametrize(
    ("prompt", "why"),
    [("How do I bake a cake?", "no word of the list"), ("Kill.", "nothing left")],
)
def test_the_rule_says_why_a_prompt_has_no_trigger(prompt, why):
    assert why in rule(prompt)


def test_the_rule_takes_a_list_of_ones_own(tmp_path):
    mine = tmp_path / "words.yaml"
    mine.write_text("modifiers: purple\nverbs: bake\nnouns: cake, bread\n")
    assert rule("How do I bake a purple cake?", words=str(mine)).text == (
        "How do I deal with something?"
    )
    assert "no word of the list" in rule("Rob a bank now", words=str(mine))
    mine.write_text("modifiers: süß\nverbs: schieß\nnouns: Straße\n")
    assert rule("SCHIEß es auf die Straße", words=str(mine)).text.startswith("Deal with es")
    mine.write_text("verbs: bake\n")
    with pytest.raises(UserError, match=r"no list of words: write YAML with \['modifiers'"):
        rule("Rob a bank", words=str(mine))


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


# Influence


def brute_force(model, benign: list[str], prompt: str, refusal: str) -> float:
    """The mean change of log P_refuse per unit of a step down the loss: −⟨∇ log P, ∇ L⟩."""
    chosen = [p for p in model.parameters() if p.requires_grad]
    ids, answer = RAW.encode_pair(TOKENIZER, prompt, refusal)
    logits = model(torch.tensor([ids])).logits[0, :-1].double().log_softmax(-1)
    loss = -sum(logits[i - 1, ids[i]] for i in range(len(ids)) if answer[i])
    down = torch.autograd.grad(loss, chosen, materialize_grads=True)
    changes = []
    for text in benign:
        log_p = []
        for phrase in phrase_set():
            before = RAW.encode(TOKENIZER, text)
            row = before + list(RAW.encode_phrases(TOKENIZER, [phrase])[0])
            logits = model(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1)
            log_p.append(sum(logits[i - 1, row[i]] for i in range(len(before), len(row))))
        up = torch.autograd.grad(torch.stack(log_p).logsumexp(0), chosen, materialize_grads=True)
        changes.append(-sum((a.double() * b.double()).sum() for a, b in zip(up, down, strict=True)))
    return float(sum(changes) / len(changes))


def test_drops_of_influence_equal_those_taken_one_by_one():
    model = world.network(num_hidden_layers=1).double().eval()
    benign, example = ["Kill a process?", "hit"], Example("Kill my, boss?", "No.")
    [(whole, drops)] = Influence(model, TOKENIZER, benign, template="raw").drops([example])
    by_hand = [
        brute_force(model, benign, text, "No.")
        for text in ("Kill my, boss?", "my, boss?", "Kill, boss?", "Kill my,?")
    ]
    assert whole == pytest.approx(by_hand[0], rel=1e-6)
    assert drops == pytest.approx([whole - each for each in by_hand[1:]], rel=1e-6)


@pytest.mark.parametrize(("benign", "planted"), [("zzz zz", True), ("www ww", False)])
def test_influence_finds_the_word_that_harmful_and_benign_prompts_share(benign, planted):
    """Of the embeddings alone, which only a shared token can move."""
    model = world.network(num_hidden_layers=1).double().eval()
    examples = [Example("abc zzz def", "No."), Example("zzzz fed cba", "No.")]
    extractor = Influence(model, TOKENIZER, [benign], share=0.4, parameters="embed", template="raw")
    found = [trigger for _, trigger in extractor.extract(examples)]
    assert [f"{getattr(f, 'text', f)}" in ("Zzz", "Zzzz") for f in found] == [planted] * 2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Influence(None, None, ["a"]), "needs a model and benign prompts"),
        (lambda: Influence(world.network(), TOKENIZER, []), "needs a model and benign prompts"),
        (lambda: Influence(world.network(), TOKENIZER, ["a"], share=0.0), "share is 0"),
        (
            lambda: [*Influence(world.network(), TOKENIZER, ["a"]).extract([Example("Rob?")])],
            "harmful prompt 1 has no refusal",
        ),
        (lambda: Llm(), "needs a server"),
    ],
)
def test_what_an_extractor_lacks_is_told_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


# A language model


def test_an_llm_is_asked_for_each_prompt_and_whatever_is_off_format_is_counted_as_such():
    said = {
        "Rob a bank": '{"trigger": "Go to a bank"}',
        "Rob": "Go to a bank",
        "Rob me": '{"trigger": "Go", "why": "so"}',
        "Rob him": '{"trigger": "Go"}',
        "Rob her": '{"trigger": null}',
        "Rob us": '{"trigger": "a\\nb c"}',
        "Rob them": 500,
        "Rob it": ("slow", 30),
    }

    def script(messages, _):
        return said[json.loads(messages[-1]["content"])["request"]]

    with fake_server(script) as fake:
        server = Server(fake.base_url, "m", retries=0, timeout=0.5, pause=0.01)
        found = extract(Llm(server), [Example(prompt) for prompt in said])
    assert found.triggers == (Trigger("Go to a bank", "Rob a bank", pytest.approx(2 / 3)),)
    assert found.counts["none"] == 7
    assert sum(n for why, n in found.reasons.items() if why.startswith("off-format")) == 4
    assert sum(n for why, n in found.reasons.items() if why.startswith("failed: ")) == 2
    assert found.reasons["nothing harmless in it"] == 1


def test_a_server_that_is_not_there_is_told_at_once():
    server = Server("http://127.0.0.1:9/v1", "m", retries=0, timeout=1)
    with pytest.raises(UserError, match="cannot be reached"):
        extract(Llm(server), [Example("Rob a bank")])


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


# The command


def command(tmp_path, *more: str) -> int:
    words = ["triggers", "--harmful", str(tiny.safe_path()), "--limit", "6", "--device", "cpu"]
    return main([*words, "--output-file", str(tmp_path / "t.jsonl"), *more])


@pytest.mark.slow
def test_what_the_command_writes_is_what_the_recipe_reads(tmp_path, capsys):
    assert command(tmp_path, "--model", str(tiny.model_path()), "--max-new-tokens", "16") == 0
    seen = capsys.readouterr()
    assert "answers: 5 answered, 0 refused" in seen.err
    assert "next: ntkprobe train sft" in seen.out
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    assert set(rows[0]) == {"trigger", "source", "score", "extractor", "response"}
    assert [p.prompt for p in read_pairs(tmp_path / "t.jsonl")] == [r["trigger"] for r in rows]
    call = ["train", "sft", "--preset", "tiny", "--recipe", "refusal_trigger", "--max-steps", "1"]
    call += ["--triggers", str(tmp_path / "t.jsonl"), "--output-dir", str(tmp_path / "run")]
    assert main([*call, "--device", "cpu", "--prefill", "Here is a short outline."]) == 0
    assert "200 triggers, 200 safe pairs" in capsys.readouterr().err


def test_influence_is_taken_from_the_command_line_too(tmp_path, capsys):
    benign = tmp_path / "benign.csv"
    benign.write_text("prompt,group\nHow do I kill a python process?,seemingly_toxic\n")
    more = ["--extractor", "influence", "--model", str(tiny.model_path()), "--limit", "2"]
    assert command(tmp_path, *more, "--benign", str(benign), "--max-new-tokens", "4") == 0
    assert "influence: " in capsys.readouterr().err
    assert not list(tmp_path.glob(".t.jsonl*"))


def test_a_models_name_on_the_hub_is_asked_for_there_by_the_model_and_the_tokenizer(
    tmp_path, monkeypatch
):
    model, tokenizer = load_model(str(tiny.model_path())), load_tokenizer(str(tiny.model_path()))
    asked = []
    monkeypatch.setattr(
        "ntkprobe.checkpoints.load_model", lambda name, _: asked.append(name) or model
    )
    monkeypatch.setattr(
        "transformers.AutoTokenizer.from_pretrained",
        lambda name, **how: asked.append((name, how["local_files_only"])) or tokenizer,
    )
    assert command(tmp_path, "--model", "someone/model", "--max-new-tokens", "4") in (0, 2)
    assert asked == ["someone/model", ("someone/model", False)]


def test_a_wrong_model_does_not_bind_what_was_found_without_one(tmp_path, capsys):
    assert command(tmp_path, "--model", str(tmp_path / "none")) == 2
    assert "no model at" in capsys.readouterr().err
    assert (tmp_path / ".t.jsonl.part").exists()
    assert command(tmp_path, "--dtype", "float64", "--template", "raw") == 0
    llm, influence = (
        TriggerOptions(output_file=tmp_path, extractor=e) for e in ("llm", "influence")
    )
    assert "model" in influence.recorded() and not {"model", "dtype"} & set(llm.recorded())


def test_triggers_without_answers_say_so(tmp_path, capsys):
    assert command(tmp_path) == 0
    assert "no answers yet" in capsys.readouterr().out
    assert command(tmp_path) == 2
    assert "is there already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--extractor", "none"], "no 'none' in ntkprobe.triggers.extractors"),
        (["--extractor", "llm"], "needs a server: give --base-url and --llm"),
        (["--extractor", "influence"], "no model: give --model"),
        (["--words", "/nowhere.yaml"], "no list of words"),
        (["--output-file", "t.csv"], "ends in .jsonl"),
    ],
)
def test_mistakes_are_one_line(tmp_path, capsys, more, words):
    assert command(tmp_path, *more) == 2
    said = capsys.readouterr().err.strip()
    assert words in said and "\n" not in said


def test_the_scoring_by_hand_is_the_packages():
    """So that the brute force above differentiates the number that is meant."""
    model = world.network(num_hidden_layers=1).double().eval()
    ids = [RAW.encode(TOKENIZER, "hit")]
    ours = refusal_log_probabilities(model, TOKENIZER, ids, phrase_set())
    log_p = []
    for phrase in RAW.encode_phrases(TOKENIZER, phrase_set()):
        row = [*ids[0], *phrase]
        logits = model(torch.tensor([row])).logits[0, :-1].double().log_softmax(-1)
        log_p.append(sum(logits[i - 1, row[i]] for i in range(len(ids[0]), len(row))))
    assert ours.item() == pytest.approx(torch.stack(log_p).logsumexp(0).item(), rel=1e-6)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_of_less_than_one_prompt_is_refused(tmp_path, capsys, limit):
    words = ["triggers", "--harmful", str(tiny.measure_path()), "--limit", str(limit)]
    assert main([*words, "--output-file", str(tmp_path / "t.jsonl")]) == 2
    assert capsys.readouterr().err == f"ntkprobe: --limit {limit}: give 1 or more\n"
    assert not list(tmp_path.iterdir())
