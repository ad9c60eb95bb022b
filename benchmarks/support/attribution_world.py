"""What the benchmarks of attribution train, on what, and where it is kept.

The embedded model with a LoRA adapter, at the settings of the preset `tiny` apart from the number
of pairs and of epochs. Whatever was trained and measured once is read from its folder.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.attribution import Attribution
from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.presets.settings import preset_settings
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.storage import write_json
from ntkprobe.training.callbacks import StepCallback
from ntkprobe.training.data import Pair, draw, read_pairs
from ntkprobe.training.sft import SFTConfig, train_sft

BASE = str(tiny.model_path())


@dataclass(frozen=True)
class World:
    """What everything is trained and measured on.

    Attributes:
        folder: where runs and numbers are kept.
        general: all normal pairs.
        safe: all refusals.
        epochs: of every training.
        explained: prompts whose refusals are explained.
        others: seemingly toxic prompts that are explained nowhere.
        harmful: toxic prompts.
    """

    folder: Path
    general: tuple[Pair, ...]
    safe: tuple[Pair, ...]
    epochs: float
    explained: PromptSet
    others: PromptSet
    harmful: PromptSet

    @classmethod
    def of(cls, options: argparse.Namespace) -> "World":
        """Draw pairs and prompts."""
        normal, refused = (
            list(dict.fromkeys(read_pairs(path)))
            for path in (tiny.general_path(), tiny.safe_path())
        )
        general = draw(normal, options.general, "attribution/general")
        safe = draw(refused, options.safe, "attribution/safe")
        prompts = PromptSet.from_file(tiny.measure_path())
        explained = prompts.in_group("seemingly_toxic").sample(options.prompts, 0)
        known = {prompt.text for prompt in explained}
        others = tuple(p for p in prompts.in_group("seemingly_toxic") if p.text not in known)
        harmful = prompts.in_group("toxic").sample(options.prompts, 0)
        folder = Path(options.output_dir)
        pairs = (tuple(general), tuple(safe))
        return cls(folder, *pairs, options.epochs, explained, PromptSet(others), harmful)

    @staticmethod
    def add_options(parser: argparse.ArgumentParser) -> None:
        """Add the options that `of` reads, with the sizes of the linear datamodelling score."""
        parser.add_argument("--output-dir", default="runs/attribution")
        parser.add_argument("--prompts", type=int, default=15, help="explained")
        parser.add_argument("--general", type=int, default=350)
        parser.add_argument("--safe", type=int, default=50)
        parser.add_argument("--epochs", type=float, default=5)

    @property
    def signs(self) -> np.ndarray:
        """+1 for refusals and −1 for normal pairs, in the order of `pairs`."""
        return np.array([-1.0] * len(self.general) + [1.0] * len(self.safe))

    @property
    def pairs(self) -> list[Pair]:
        """All pairs, those of a run's data in another order."""
        return [*self.general, *self.safe]


def trained(
    world: World,
    name: str,
    pairs: Sequence[Pair],
    seed: int,
    start: str = BASE,
    added: Sequence[Pair] = (),
) -> Path:
    """Return the adapter that a training leaves.

    Args:
        world: what there is.
        name: of the run's folder.
        pairs: those of the world's pairs that are trained on.
        seed: of the training.
        start: the model that it begins with.
        added: further pairs, all trained on as STL-aug's are.
    """
    kept = set(pairs)
    general, safe = ([p for p in part if p in kept] for part in (world.general, world.safe))
    config = _config(world, world.folder / name, seed, save_strategy="no")
    config.n_general, config.n_safe = len(general), len(safe)
    if added:
        config.recipe = "stl_aug"
        return train_sft(start, general, safe, config, seemingly=list(added))
    return train_sft(start, general, safe, config)


def _config(world: World, folder: Path, seed: int, **changes: Any) -> SFTConfig:
    """Return the preset's settings for the world's sizes."""
    settings = preset_settings("tiny", "sft") | {
        "output_dir": str(folder),
        "seed": seed,
        "num_train_epochs": world.epochs,
        "n_general": len(world.general),
        "n_safe": len(world.safe),
        "disable_tqdm": True,
        "use_cpu": True,
    }
    del settings["model"], settings["save_at"]
    return SFTConfig(**{**settings, **changes})


def whole_run(world: World, steps: bool = True) -> Path:
    """Return the run on all pairs that is attributed, with checkpoints and recorded steps."""
    last = -(-len(world.pairs) // 32) * int(world.epochs)
    marks = sorted({round(last * share) for share in (0, 0.05, 0.1, 0.2, 0.4, 0.7, 1)})
    config = _config(world, world.folder / "whole", 0, save_at=marks)
    train_sft(BASE, world.general, world.safe, config, callbacks=[StepCallback()] if steps else [])
    return world.folder / "whole"


def measured(
    world: World, name: str, prompts: PromptSet, train: Callable[[], tuple[str, Path]]
) -> dict[str, list[float]]:
    """Return log P(refuse) and whether it refuses, for each prompt; trained if not known yet."""
    path = world.folder / "measured" / f"{name}.json"
    if path.is_file():
        return json.loads(path.read_text())
    start, adapter = train()
    with adapted(load_model(start), adapter) as model:
        found = ntk.measure_refusal(model, load_tokenizer(BASE), prompts, max_new_tokens=12)
    rows = found.frame()
    rows = rows[rows["reduction"] == "literal"].sort_values("prompt")
    values = {n: rows[n].astype(float).tolist() for n in ("log_probability", "refuses")}
    write_json(path, values)
    return values


def halves(world: World, number: int) -> list[np.ndarray]:
    """Return which pairs are in each half, `[pairs]` booleans."""
    n = len(world.pairs)
    found = []
    for half in range(number):
        order = np.random.default_rng([7, half]).permutation(n)
        found.append(np.isin(np.arange(n), order[: n // 2]))
    return found


def from_base(
    world: World, name: str, pairs: Sequence[Pair], seed: int
) -> Callable[[], tuple[str, Path]]:
    """Return what trains the base on some pairs."""
    return lambda: (BASE, trained(world, name, pairs, seed))


def in_order(world: World, found: Attribution) -> np.ndarray:
    """Return the changes `[prompts, pairs]` with the pairs in the order of the world's."""
    texts = list(zip(found.pairs["prompt"], found.pairs["response"], strict=True))
    places = {text: place for place, text in enumerate(texts)}
    order = [places[pair.prompt, pair.response] for pair in world.pairs]
    return found.changes[:, order]
