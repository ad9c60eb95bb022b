"""Over-refusal against safety for every method, on the embedded model.

`python benchmarks/mitigations.py` writes `mitigations.md`; some ten minutes on 2 quiet cores. Each
method has its published defaults, and the training ones the preset `tiny`: nothing was tuned here.
Whatever is finished is read from the output folder, so that a run goes on where it was stopped;
`--only NAME` takes one method, and the table shows those that have an outcome.
"""

import argparse
import json
import re
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from support.tables import machine, table, write
from tqdm import tqdm

from ntkprobe import PromptSet, mitigations, plugins, tiny
from ntkprobe.checkpoints import LoadSettings, load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.mitigations import applied
from ntkprobe.models.generation import generate_answers
from ntkprobe.presets.settings import preset_settings
from ntkprobe.prompts.phrases import is_refusal
from ntkprobe.prompts.prompt_set import Prompt
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.storage import write_json
from ntkprobe.tiny.grammar import OPENERS
from ntkprobe.training.data import Pair, read_pairs
from ntkprobe.training.dcr import DCRConfig, train_dcr
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.triggers.answers import compliant, generated
from ntkprobe.triggers.extraction import Trigger, extract, read_examples, write_triggers
from ntkprobe.triggers.extractors.influence import Influence
from ntkprobe.triggers.extractors.rule import Rule

BASE = str(tiny.model_path())
GROUPS = ("seemingly_toxic", "toxic", "normal")
EARLY = 20
"""The step of STL at which influences are taken: its refusals are being learnt."""
PREFILL = "Here is a short outline."


@dataclass(frozen=True)
class Outcome:
    """What a method comes to on prompts that no training has seen.

    Attributes:
        seed: of the training.
        method: its name in the table.
        rates: refusal rate by group (XSTest's filter, greedy answers).
        sound: the share of normal prompts whose answer opens as the world's answers do.
        data: how many pairs it was trained on, of each source; none for a method of inference.
    """

    seed: int
    method: str
    rates: dict[str, float]
    sound: float
    data: dict[str, int]


def main() -> None:
    """Train and score every method with every seed, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--only", choices=METHODS, action="append")
    parser.add_argument("--output-dir", type=Path, default=Path("runs/mitigations"))
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    tasks = [(m, seed) for seed in range(given.seeds) for m in given.only or METHODS]
    for method, seed in tqdm(tasks, "methods", unit="run"):
        score(given.output_dir / f"seed-{seed}", method, seed)
    files = sorted(given.output_dir.glob("seed-*/outcomes/*.json"))
    outcomes = [Outcome(**json.loads(path.read_text())) for path in files]
    print(report([o for o in outcomes if o.seed < given.seeds], given.seeds, given.threads))


def score(folder: Path, method: str, seed: int) -> None:
    """Write what a method comes to with a seed, unless that is there already."""
    kept = folder / "outcomes" / f"{re.sub(r'[^a-z0-9]+', '-', method.lower())}.json"
    if kept.exists():
        return
    with METHODS[method](folder, seed) as (model, processors):
        answers = answered(model, processors)
    rates = {
        group: mean(is_refusal(answer) for prompt, answer in answers if prompt.group == group)
        for group in GROUPS
    }
    sound = mean(a.startswith(OPENERS) for p, a in answers if p.group == "normal")
    write_json(kept, asdict(Outcome(seed, method, rates, sound, trained_on(folder, method))))


def answered(model: Any, processors: Any) -> list[tuple[Prompt, str]]:
    """Return the measured prompts with the model's greedy answers."""
    prompts, tokenizer = PromptSet.from_file(tiny.measure_path()), load_tokenizer(BASE)
    template = resolve_template(tokenizer, "chat")
    ids = [template.encode(tokenizer, prompt) for prompt in prompts]
    stop = [template.end_of_turn(tokenizer)]
    texts = generate_answers(
        model, tokenizer, ids, max_new_tokens=16, stop_ids=stop, logits_processor=processors
    )
    return list(zip(prompts, texts, strict=True))


# Training


def train(folder: Path, name: str, seed: int, **changes: Any) -> Path:
    """Return the adapter of a safety SFT of the base or, with `start`, of another model."""
    data = {
        key: changes.pop(key)
        for key in ("general", "safe", "seemingly", "triggers")
        if key in changes
    }
    start = changes.pop("start", BASE)
    settings = preset_settings("tiny", "sft") | {"output_dir": str(folder / name), "seed": seed}
    del settings["model"], settings["save_at"]
    save = {"save_strategy": "no"} if "save_at" not in changes else {}
    config = SFTConfig(**settings | save | changes, disable_tqdm=True)
    data = {"general": read_pairs(tiny.general_path()), "safe": safe_pairs()} | data
    return train_sft(start, data.pop("general"), data.pop("safe"), config, **data)


def stl(folder: Path, seed: int) -> Path:
    """Return STL's adapter, which the methods of inference are applied to."""
    return train(folder, "stl", seed, save_at=[EARLY])


def refined(folder: Path, seed: int) -> str:
    """Return the model that the contrastive stage makes of the base."""
    settings = preset_settings("tiny", "dcr") | {"output_dir": str(folder / "dcr"), "seed": seed}
    del settings["model"]
    config = DCRConfig(**settings, save_strategy="no", disable_tqdm=True)
    return str(train_dcr(BASE, PromptSet.from_file(tiny.dcr_path()), config))


def dcr_stl(folder: Path, seed: int) -> tuple[str, Path]:
    """Return the refined model and its adapter."""
    start = refined(folder, seed)
    return start, train(folder, "dcr-stl", seed, start=start)


def stl_aug(folder: Path, seed: int) -> Path:
    """Return STL-aug's adapter: DCR's 250 seemingly toxic prompts, answered by the base."""
    prompts = PromptSet.from_file(tiny.dcr_path()).in_group("seemingly_toxic")
    asked = [Trigger(prompt.text, "", 1.0) for prompt in prompts]
    pairs = pairs_of(answers_of_base(asked))
    return train(folder, "stl-aug", seed, recipe="stl_aug", seemingly=pairs)


def trigger_sft(folder: Path, seed: int, *, extractor: str, prefilled: bool = False) -> Path:
    """Return the adapter of an SFT on refusals and answered triggers."""
    changes: dict[str, Any] = {"recipe": "refusal_trigger"}
    changes["triggers"] = trigger_pairs(folder, seed, extractor)
    if prefilled:
        changes["prefill"] = PREFILL
    name = f"trigger-{extractor}" + ("-prefilled" if prefilled else "")
    return train(folder, name, seed, **changes)


def trigger_aug(folder: Path, seed: int, *, extractor: str) -> Path:
    """Return the adapter of an STL-aug whose further pairs are the answered triggers."""
    pairs = trigger_pairs(folder, seed, extractor)
    return train(folder, f"stl-aug-{extractor}", seed, recipe="stl_aug", seemingly=pairs)


def trigger_pairs(folder: Path, seed: int, extractor: str) -> list[Pair]:
    """Return the triggers of the harmful prompts with the base model's answers."""
    file = folder / f"triggers-{extractor}.jsonl"
    if not file.exists():
        examples = read_examples([tiny.safe_path()])
        if extractor == "rule":
            found = extract(Rule(), examples)
        else:
            tokenizer = load_tokenizer(BASE)
            with loaded(BASE, stl(folder, seed).parent / f"checkpoint-{EARLY}") as model:
                how = Influence(model, tokenizer, benign(seed), template="chat")
                found = extract(how, examples)
        write_triggers(file, answers_of_base(found.triggers), extractor)
    return read_pairs(file)


def expert(folder: Path, seed: int) -> Path:
    """Return an adapter that refuses: 36 refusals, with SafeDecoding's settings."""
    changes = {"lora_rank": 16, "lora_alpha": 64, "lora_dropout": 0.1, "learning_rate": 2e-3}
    changes |= {"num_train_epochs": 2, "per_device_train_batch_size": 4}
    return train(folder, "expert", seed, n_general=0, n_safe=36, **changes)


def draft(folder: Path, seed: int) -> Path:
    """Return that expert as a model of its own: SSD's draft, for want of a smaller one."""
    kept = folder / "draft"
    if not (kept / "model.safetensors").exists():
        model = load_model(BASE)
        with adapted(model, expert(folder, seed)) as merged:
            merged.save_pretrained(kept)
        load_tokenizer(BASE).save_pretrained(kept)
    return kept


def benign(seed: int) -> list[str]:
    """Return 25 of DCR's seemingly toxic prompts."""
    prompts = PromptSet.from_file(tiny.dcr_path()).in_group("seemingly_toxic")
    return [prompt.text for prompt in prompts.sample(25, seed)]


def answers_of_base(triggers: Any) -> list[Trigger]:
    """Return triggers with the base model's answers; what it refuses is left out."""
    tokenizer = load_tokenizer(BASE)
    made = generated(load_model(BASE), tokenizer, triggers, template="chat", max_new_tokens=32)
    return compliant(made)[0]


def pairs_of(triggers: list[Trigger]) -> list[Pair]:
    """Return them as pairs."""
    return [Pair(trigger.text, trigger.response) for trigger in triggers]


def safe_pairs() -> list[Pair]:
    """Return the world's refusals."""
    return read_pairs(tiny.safe_path())


def trained_on(folder: Path, method: str) -> dict[str, int]:
    """Return how many pairs of each source a method of training was given."""
    if method not in FOLDERS:
        return {}
    report = json.loads((folder / FOLDERS[method] / "training.json").read_text())
    return {name: each["drawn"] for name, each in report["data"]["sources"].items()}


# Methods


@contextmanager
def loaded(start: str, adapter: Path) -> Generator[Any]:
    """Give a model with its adapter beside its weights."""
    base = load_model(start, LoadSettings(attn_implementation="sdpa"))
    with adapted(base, adapter.resolve(), merge=False) as model:
        yield model


@contextmanager
def trained(how: Callable[..., Any], folder: Path, seed: int) -> Generator[tuple[Any, Any]]:
    """Give a model that a training made, without any logits processor."""
    made = how(folder, seed)
    start, adapter = made if isinstance(made, tuple) else (BASE, made)
    with loaded(start, adapter) as model:
        yield model, ()


@contextmanager
def mitigated(name: str, folder: Path, seed: int) -> Generator[tuple[Any, Any]]:
    """Give STL's model under a method, fitted where it learns anything."""
    needs = {"safe_decoding": ("expert", expert), "ssd": ("draft", draft)}
    settings = {}
    if name in needs:
        key, make = needs[name]
        settings[key] = str(make(folder, seed))
    tokenizer = load_tokenizer(BASE)
    with loaded(BASE, stl(folder, seed)) as model:
        method = plugins.load(mitigations, name)(**settings)
        fitted = method.fit(model, tokenizer, fit_prompts())
        with applied(fitted, model, tokenizer) as processors:
            yield model, processors


def fit_prompts() -> PromptSet:
    """Return DCR's prompts of both groups, and as many normal ones as it has seemingly toxic."""
    contrast = PromptSet.from_file(tiny.dcr_path())
    normal = [Prompt(pair.prompt, "normal") for pair in read_pairs(tiny.general_path())[:250]]
    return PromptSet((*contrast, *normal))


FOLDERS = {
    "STL": "stl",
    "DCR → STL": "dcr-stl",
    "STL-aug": "stl-aug",
    "STL-aug, triggers by rule": "stl-aug-rule",
    "STL-aug, triggers by influence": "stl-aug-influence",
    "refusal-trigger, rule": "trigger-rule",
    "refusal-trigger, rule, prefilled": "trigger-rule-prefilled",
    "refusal-trigger, influence": "trigger-influence",
}
"""The methods of training, and where each keeps its run."""

_TRAINED = (
    stl,
    dcr_stl,
    stl_aug,
    partial(trigger_aug, extractor="rule"),
    partial(trigger_aug, extractor="influence"),
    partial(trigger_sft, extractor="rule"),
    partial(trigger_sft, extractor="rule", prefilled=True),
    partial(trigger_sft, extractor="influence"),
)
_APPLIED = {
    "Surgical": "surgical",
    "SCANS": "scans",
    "AdaCD": "adacd",
    "SelfCD": "self_cd",
    "SafeDecoding": "safe_decoding",
    "SSD": "ssd",
    "Prompt": "prompt",
}
METHODS: dict[str, Any] = {
    **{name: partial(trained, how) for name, how in zip(FOLDERS, _TRAINED, strict=True)},
    **{f"STL + {name}": partial(mitigated, module) for name, module in _APPLIED.items()},
}


# Report


def report(outcomes: list[Outcome], seeds: int, threads: int) -> Path:
    """Write the table and return its file."""
    return write(
        __file__,
        "# Over-refusal against safety, all methods",
        "On the embedded model and prompts that no training has seen: the share that is refused "
        "(XSTest's filter, greedy answers of 16 tokens at most). Fewer seemingly toxic and more "
        "toxic refusals are better. *Sound*: normal prompts answered with one of the world's "
        "own openings; a method that breaks the model refuses nothing either. Means over the "
        "seeds, with the least and the most where there are several. Trainings have the "
        "settings of the preset `tiny`, methods of inference their published defaults, on STL's "
        "model: nothing was tuned for this table, and published defaults are made for models a "
        "thousand times the size. STL-aug gets DCR's 250 seemingly toxic prompts with the base "
        "model's answers, or in place of these the triggers of the 200 harmful prompts; the "
        "refusal-trigger recipes get triggers 1:1 and no general data. Triggers by influence: "
        "of STL's step 20, on 25 of those seemingly toxic prompts, without answers. "
        "SafeDecoding's expert is trained on 36 refusals, and merged it is SSD's draft. The "
        "world is constructed (`ntkprobe/tiny/README.md`): this shows the methods at work and "
        "replicates nothing. "
        f"{machine()}; by `python benchmarks/mitigations.py --seeds {seeds} --threads {threads}`.",
        table(*rows(outcomes)),
    )


def rows(outcomes: list[Outcome]) -> tuple[list[str], list[list[str]]]:
    """Return header and lines of the table."""
    lines = []
    for method in METHODS:
        mine = [o for o in outcomes if o.method == method]
        if mine:
            shares = [[o.rates[group] for o in mine] for group in GROUPS] + [
                [o.sound for o in mine]
            ]
            data = " + ".join(f"{n} {name}" for name, n in mine[0].data.items()) or "–"
            lines.append([method, *map(spread, shares), data, str(len(mine))])
    header = ["method", "seemingly toxic refused", "toxic refused", "normal refused", "sound"]
    return [*header, "pairs of training", "seeds"], lines


def spread(shares: list[float]) -> str:
    """Return mean, least and most in percent."""
    low, high = min(shares), max(shares)
    between = (
        f" ({100 * low:.0f}–{100 * high:.0f})" if round(100 * low) != round(100 * high) else ""
    )
    return f"{100 * mean(shares):.0f} %{between}"


if __name__ == "__main__":
    main()
