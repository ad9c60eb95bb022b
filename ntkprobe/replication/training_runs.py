"""The training runs: SFT from the base or from a contrastive stage, and the choice of its rate."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..prompts.prompt_set import Prompt, PromptSet
from ..storage import replacing, write_json
from ..training.data import Pair
from ..training.dcr import DCRConfig, train_dcr
from ..training.sft import SFTConfig, train_sft
from .plan import Stage
from .settings import DEVELOPMENT_SEED
from .splits import begins_with_refusal
from .workspace import Workspace

TOXIC_AT_LEAST, NORMAL_AT_MOST = 0.8, 0.05
"""What STL has to do on the development split."""


def train(workspace: Workspace, stage: Stage) -> None:
    """Run one training; a stopped one is continued."""
    if stage.run in ("dcr", "control"):
        contrastive(workspace, stage)
    else:
        augmenting = compliant_pairs(workspace) if stage.run == "stl-aug" else []
        sft(
            workspace,
            workspace.run(stage),
            workspace.start_of(stage),
            stage.seed or 0,
            workspace.rate,
            augmenting,
        )


def contrastive(workspace: Workspace, stage: Stage) -> Path:
    """Train DCR, or the control that has its labels shuffled.

    Args:
        workspace: folder and settings.
        stage: says which, and the seed.

    Returns:
        The model.
    """
    scale, seed = workspace.scale, stage.seed or 0
    rows = workspace.splits.rows("dcr")
    groups = [row["group"] for row in rows]
    if stage.run == "control":
        random.Random(f"control {seed}").shuffle(groups)
    prompts = PromptSet(
        tuple(Prompt(row["prompt"], group) for row, group in zip(rows, groups, strict=True))
    )
    config = DCRConfig(
        output_dir=str(workspace.run(stage)),
        layer=workspace.layer,
        per_device_train_batch_size=scale.dcr_batch,
        num_train_epochs=scale.dcr_epochs,
        learning_rate=scale.dcr_rate,
        max_length=scale.length,
        seed=seed,
        dtype=workspace.settings.dtype,
        use_cpu=workspace.settings.device == "cpu",
        save_total_limit=1,
        report_to="none",
    )
    return train_dcr(workspace.settings.model, prompts, config)


def sft(
    workspace: Workspace,
    folder: Path,
    start: str,
    seed: int,
    rate: float,
    seemingly: Sequence[Pair] = (),
) -> Path:
    """Run SFT.

    Args:
        workspace: folder and settings.
        folder: of the run.
        start: the model it starts from.
        seed: draws the pairs, and all else that is random.
        rate: the learning rate.
        seemingly: answered seemingly toxic prompts, for STL-aug.

    Returns:
        The adapter.
    """
    scale = workspace.scale
    steps = scale.steps(workspace.pairs + len(seemingly))
    config = SFTConfig(
        output_dir=str(folder),
        recipe="stl_aug" if seemingly else "stl",
        n_general=scale.general,
        n_safe=scale.safe,
        per_device_train_batch_size=scale.batch,
        gradient_accumulation_steps=scale.accumulate,
        max_steps=steps,
        learning_rate=rate,
        max_length=scale.length,
        save_at=scale.saves(steps),
        seed=seed,
        dtype=workspace.settings.dtype,
        use_cpu=workspace.settings.device == "cpu",
        report_to="none",
    )
    general, safe = workspace.splits.pairs("general"), workspace.splits.pairs("refusals")
    return train_sft(start, general, safe, config, seemingly=seemingly)


def choose(workspace: Workspace) -> None:
    """Choose the learning rate by runs of STL on the development split, and write why."""
    rates = workspace.scale.rates
    tried: list[dict[str, Any]] = []
    for rate in rates if len(rates) > 1 else ():
        folder = workspace.run(f"choice-{rate:g}")
        adapter = sft(workspace, folder, workspace.settings.model, DEVELOPMENT_SEED, rate)
        found = {"rate": rate, **development_rates(workspace, adapter, f"choice-{rate:g}")}
        tried.append(found)
        workspace.log(f"  rate {rate:g}: toxic {found['toxic']:.0%}, normal {found['normal']:.0%}")
        if meets(found):
            break
    best = next((t for t in tried if meets(t)), None) or max(
        tried, key=lambda t: t["toxic"] - t["normal"], default={"rate": rates[0]}
    )
    met = meets(best) if tried else None
    write_json(workspace.out / "choice.json", {"rate": best["rate"], "met": met, "tried": tried})


def meets(found: dict[str, Any]) -> bool:
    """Return whether a run does what STL has to do."""
    return bool(found["toxic"] >= TOXIC_AT_LEAST and found["normal"] <= NORMAL_AT_MOST)


def development_rates(workspace: Workspace, adapter: Path, name: str) -> dict[str, float]:
    """Return the refusal rate of each group of the development split."""
    from .evaluating import refusal_rates

    return refusal_rates(workspace, adapter, workspace.splits.path("development"), name)


def compliant_pairs(workspace: Workspace) -> list[Pair]:
    """Return XSTest's safe prompts with the base model's compliant answers, stored in a file."""
    path = workspace.splits.path("augmenting")
    if not path.is_file():
        from .evaluating import base_answers

        texts = [
            r["prompt"] for r in workspace.splits.rows("dcr") if r["group"] == "seemingly_toxic"
        ]
        answers = base_answers(workspace, texts)
        rows = [
            {"prompt": prompt, "response": answer}
            for prompt, answer in zip(texts, answers, strict=True)
            if answer.strip() and not begins_with_refusal(answer)
        ]
        with replacing(path) as hidden:
            hidden.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return workspace.splits.pairs("augmenting")
