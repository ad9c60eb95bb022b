"""`ntkprobe mitigate`, and `ntkprobe measure --mitigation`."""

import json

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_runs import lora_run, tiny_adapter, tiny_model, write_prompts

from ntkprobe import Trajectory
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.cli import main
from ntkprobe.evaluation.models import EvaluatedModel
from ntkprobe.evaluation.settings import AnswerSettings
from ntkprobe.measurement import measure_kernel, measure_refusal
from ntkprobe.mitigations import Decoding, applied, load, names, save
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.refusal import refusal_log_probabilities
from ntkprobe.tiny import measure_path, model_path

GIVEN = [f"--model={model_path()}", f"--prompts={measure_path()}", "--device=cpu"]
SCANS = ["mitigate", "fit", "scans", *GIVEN, "--set", "anchors=6", "--set", "threshold=0.9"]
QUICK = ["--per-group=1", "--limit=2", "--max-new-tokens=2", "--top-k=2", "--no-verify"]


@pytest.fixture
def call(capsys):
    """Run the command: status, last words, errors."""

    def run(*arguments):
        status = main([str(argument) for argument in arguments])
        printed = capsys.readouterr()
        return status, printed.out.strip(), printed.err.strip()

    return run


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fitted") / "scans"
    assert main([*SCANS, f"--output-dir={folder}"]) == 0
    return folder


def test_the_list_names_every_method_with_its_source(call):
    status, out, _ = call("mitigate", "list")
    assert status == 0 and [line.split()[0] for line in out.splitlines()[::2]] == names()
    assert "surgical  steering  Wang et al., ICLR 2025" in out and "threshold=0.75" in out


def test_what_was_fitted_is_json_and_safetensors(call, scans):
    about = json.loads((scans / "mitigation.json").read_text())
    assert about["method"] == "scans" and about["settings"]["anchors"] == 6
    assert about["learned"]["fitted_on"]["type"] == "qwen2"
    assert load_file(scans / "mitigation.safetensors")["vectors"].shape == (6, 128)
    status, _, err = call(*SCANS, "--output-dir", scans)
    assert status == 2 and "holds a mitigation: choose another --output-dir, or --overwrite" in err
    assert call(*SCANS, "--overwrite", "--output-dir", scans)[0] == 0


@pytest.mark.slow
def test_measure_under_a_mitigation_is_the_measurement_inside_the_context(call, scans, tmp_path):
    folder = tmp_path / "out"
    status, _, err = call("measure", *GIVEN, *QUICK, "--mitigation", scans, "--output-dir", folder)
    assert status == 0 and f"under the mitigation {scans}" in err
    run = Trajectory(folder)
    model, tokenizer = load_model(str(model_path())), load_tokenizer(model_path())
    every = PromptSet.from_file(measure_path())
    prompts = every.take(sorted(row for g in every.groups for row in every.rows(g)[:2]))
    with applied(load(scans, model), model, tokenizer):
        kernel = measure_kernel(model, tokenizer, prompts.sample(1), top_k=2)
        refusal = measure_refusal(model, tokenizer, prompts, generate=False)
    plain = measure_refusal(model, tokenizer, prompts, generate=False)
    found = torch.tensor(run.kernel()["norm"].to_numpy()).reshape(3, 3)
    torch.testing.assert_close(found, kernel.norms, atol=0, rtol=1e-4)
    literal = refusal.log_probabilities["paper31", "literal"]
    table = run.refusal().query("reduction == 'literal'")
    measured = torch.tensor(table["log_probability"].to_numpy())
    torch.testing.assert_close(measured, literal, atol=1e-4, rtol=0)
    assert (literal - plain.log_probabilities["paper31", "literal"]).abs().max() > 0.1


@pytest.mark.parametrize("route", ["run", "stage", "evaluated"])
def test_safe_decoding_s_expert_is_over_the_base_and_not_over_the_run_s_adapter(
    call, route, tmp_path
):
    adapter, prompts = (
        lora_run(tmp_path, (10,)) / "checkpoint-10",
        write_prompts(tmp_path / "p.csv"),
    )
    tiny_adapter(tiny_model(), seed=7).save_pretrained(tmp_path / "expert")
    save(SafeDecoding(expert=str(tmp_path / "expert"), common=32), tmp_path / "m")
    tokenizer, texts = load_tokenizer(tmp_path / "base"), PromptSet.from_file(prompts)
    ids = [torch.tensor(tokenizer(prompt.text)["input_ids"]) for prompt in texts]
    own, expert = (tiny_adapter(tiny_model(), seed=seed) for seed in (10, 7))
    expected = []
    for row in ids:
        with torch.no_grad():
            p, p_e = (m(row[None]).logits[0, -1].softmax(-1) for m in (own, expert))
        mixed = (p + 3 * (p_e - p)).clamp(min=1e-8)
        word = tokenizer.convert_tokens_to_ids("sorry")
        expected.append((mixed[word] / mixed.sum()).log().double())
    if route == "evaluated":
        model = EvaluatedModel(str(tmp_path / "base"), adapter, tmp_path / "m")
        with model.in_memory(AnswerSettings(template="raw"), None) as local:
            how = {"logits_processor": local.processors, "template": local.template}
            found = refusal_log_probabilities(local.model, tokenizer, ids, ["sorry"], **how)
    else:
        (tmp_path / "phrases.txt").write_text("sorry\n")
        place = {"run": ["--ckpt-dir", tmp_path / "run"], "stage": ["--stage", f"s={adapter}"]}
        flags = ["--only=refusal", "--no-generate", "--no-verify", "--device=cpu", "--template=raw"]
        flags += [f"--phrases={tmp_path / 'phrases.txt'}", f"--prompts={prompts}"]
        flags += ["--mitigation", tmp_path / "m", "--output-dir", tmp_path / "out"]
        status, _, err = call("measure", *place[route], *flags)
        assert status == 0, err
        table = Trajectory(tmp_path / "out").refusal().query("reduction == 'literal'")
        last = table[table["step"] == table["step"].max()].sort_values("prompt")
        found = torch.tensor(last["log_probability"].to_numpy())
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-4, rtol=0)


def test_run_json_tells_the_mitigation_and_another_one_is_refused(call, scans, tmp_path):
    only = [*GIVEN, *QUICK, "--only=kernel", f"--output-dir={tmp_path / 'out'}"]
    assert call("measure", *only, "--mitigation", scans)[0] == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["model"]["mitigation"].startswith("scans#")
    status, _, err = call("measure", *only)
    assert status == 2 and "measured with model.mitigation = 'scans#" in err


@pytest.mark.parametrize(
    ("typed", "system"),
    [
        ("Note: be kind # always", "Note: be kind # always"),
        ("", ""),
        ("'Be: kind'", "Be: kind"),
        ("[INST] 7", "[INST] 7"),
        ("null", "null"),
    ],
)
def test_a_text_is_set_as_it_was_typed(call, typed, system, tmp_path):
    fit = ["mitigate", "fit", "prompt", GIVEN[0], "--device=cpu", f"--output-dir={tmp_path / 'm'}"]
    assert call(*fit, "--set", f"system={typed}")[0] == 0
    assert load(tmp_path / "m").system == system


def test_the_default_folder_names_the_mitigation(call, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    call("measure", *GIVEN, *QUICK, "--only=kernel", "--mitigation", scans)
    assert [path.name for path in tmp_path.iterdir()] == ["model-scans-ntk"]


def test_an_unmitigated_folder_takes_no_mitigated_numbers(call, scans, tmp_path):
    only = [*GIVEN, *QUICK, "--only=kernel", f"--output-dir={tmp_path / 'out'}"]
    assert call("measure", *only)[0] == 0
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    del record["model"]["mitigation"]  # as an older version wrote it
    (tmp_path / "out" / "run.json").write_text(json.dumps(record))
    assert call("measure", *only)[0] == 0
    status, _, err = call("measure", *only, "--mitigation", scans)
    assert status == 2 and "measured with model.mitigation = None" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "scan", *GIVEN], "no 'scan' in ntkprobe.mitigations: choose from"),
        ([*SCANS[1:], "--set", "alpha=2"], "Scans has no setting 'alpha': choose from"),
        ([*SCANS[1:], "--set", "treshold=2"], "did you mean 'threshold'?"),
        ([*SCANS[1:], "--set", "weight=much"], "weight is 'much': give float, such as 3.5"),
        ([*SCANS[1:], "--set", "layers=0.9,0.95"], "layers 0.9…0.95 holds none of the model's 6"),
        ([*SCANS[1:], "--set", "weight"], "write NAME=VALUE, such as --set weight=3.5"),
        (["fit", "scans", GIVEN[0]], "scans learns from prompts: give --prompts"),
        (["fit", "surgical", *GIVEN], "name the words that its refusals begin with"),
    ],
)
def test_a_mistake_is_one_line(call, tmp_path, arguments, message):
    status, _, err = call("mitigate", *arguments, "--output-dir", tmp_path / "m")
    assert status == 2 and message in err and len(err.splitlines()) == 1
    assert not (tmp_path / "m").exists()


def test_an_adapters_folder_is_fitted_over_its_own_base(call, tmp_path):
    model = get_peft_model(
        load_model(model_path()), LoraConfig(target_modules=["q_proj"], init_lora_weights=False)
    )
    model.peft_config["default"].base_model_name_or_path = str(model_path())
    model.save_pretrained(tmp_path / "adapter")
    fit = [each for each in SCANS if not each.startswith("--model")]
    place = f"--model={tmp_path / 'adapter'}"
    status, out, _ = call(*fit, place, "--output-dir", tmp_path / "alone")
    assert status == 0 and f"measure --ckpt-dir {tmp_path / 'adapter'}" in out
    assert (
        call(*SCANS, "--adapter", tmp_path / "adapter", "--output-dir", tmp_path / "over")[0] == 0
    )
    both = [load(tmp_path / name).vectors for name in ("alone", "over")]
    torch.testing.assert_close(*both)


def test_a_fit_set_without_harmful_prompts_is_one_line(call, tmp_path):
    (tmp_path / "p.csv").write_text("prompt,group\nBake bread.,normal\n")
    given = [GIVEN[0], "--prompts", tmp_path / "p.csv", "--output-dir", tmp_path / "m"]
    status, _, err = call("mitigate", "fit", "scans", *given)
    assert status == 2 and "no prompts in group 'toxic': the set has ['normal']" in err


def test_a_damaged_mitigation_is_one_line(call, scans, tmp_path):
    measured = ["measure", *GIVEN, *QUICK, "--output-dir", tmp_path / "out", "--mitigation"]
    status, _, err = call(*measured, tmp_path)
    assert status == 2 and "holds no mitigation" in err
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "mitigation.json").write_bytes((scans / "mitigation.json").read_bytes())
    assert "mitigation.safetensors cannot be read" in call(*measured, tmp_path / "m")[2]
    tensors = load_file(scans / "mitigation.safetensors")
    save_file({**tensors, "vectors": tensors["vectors"] / 0}, tmp_path / "m/mitigation.safetensors")
    assert "vectors is not finite" in call(*measured, tmp_path / "m")[2]


def test_a_decoding_method_has_refusals_but_no_kernel(call, tmp_path, monkeypatch):
    from small_mitigations import Tilt

    from ntkprobe import plugins

    known = plugins.load
    monkeypatch.setattr(
        plugins, "load", lambda package, name: Tilt if name == "tilt" else known(package, name)
    )
    monkeypatch.setattr(Tilt, "__module__", "ntkprobe.mitigations.tilt")
    assert issubclass(Tilt, Decoding)
    save(Tilt(0.01), tmp_path / "tilt")
    measured = ["measure", *GIVEN, *QUICK, "--mitigation", tmp_path / "tilt"]
    status, _, err = call(*measured, "--output-dir", tmp_path / "out")
    assert status == 0 and "has no kernel of its own: refusal alone is measured" in err
    assert not (tmp_path / "out" / "kernel").exists()
    status, _, err = call(*measured, "--only=kernel", "--output-dir", tmp_path / "other")
    assert status == 2 and "measure it with --only refusal" in err


def test_the_embedded_model_has_an_end_of_the_instruction():
    from ntkprobe.mitigations.activations import instruction_end

    tokenizer = load_tokenizer(model_path())
    ending = instruction_end(tokenizer, resolve_template(tokenizer))
    assert tokenizer.decode(ending).replace(" ", "") == "<|end|><|assistant|>"
