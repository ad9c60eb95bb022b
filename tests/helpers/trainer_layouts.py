"""Folders of tiny runs, laid out as each trainer documents or writes them.

Every builder writes a run whose model after `step` steps is `tiny_model(step)`, or the adapter
`tiny_adapter(tiny_model(0), step)`, and the files that the trainer leaves beside them.
"""

import json
import pickle
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from safetensors.torch import load_file, save_file
from tiny_runs import finish, save_base, tiny_adapter, tiny_model, tiny_tokenizer

RATES = {1: 2e-05, 2: 1.5e-05, 3: 1e-05, 4: 5e-06}
"""The learning rates by step that the logs tell."""


class Bomb:
    """Unpickled, it leaves a file where `touch` says."""

    def __init__(self, touch: Path) -> None:
        self.touch = touch

    def __reduce__(self) -> tuple:
        return Path.touch, (self.touch,)


@dataclass(frozen=True)
class Layout:
    """A run as a trainer leaves it.

    Attributes:
        build: writes it into a folder, whose parent may take a base.
        steps: the steps that its checkpoints are of, as they are to be found.
        seeds: what the model of each was made with (`tiny_model`, `tiny_adapter`).
        kind: `full` or `adapter`.
        rates: what its logs say of the learning rate.
    """

    build: Callable[[Path], None]
    steps: tuple[int, ...]
    seeds: tuple[int, ...]
    kind: str = "full"
    rates: dict[int, float] = field(default_factory=lambda: RATES)


def full(folder: Path, seed: int, **saving: object) -> Path:
    tiny_model(seed).save_pretrained(folder, **saving)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def adapter(folder: Path, seed: int, base: Path | str) -> Path:
    model = tiny_model(0)
    model.name_or_path = model.config._name_or_path = str(base)
    tiny_adapter(model, seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def trainer_files(folder: Path, step: int | None, max_steps: int = 4) -> None:
    """Write what transformers' Trainer leaves beside the weights, its pickles among them."""
    touched = folder.parent / "executed"
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        (folder / name).write_bytes(pickle.dumps(Bomb(touched)))
    (folder / "README.md").write_text("# A model card\n")
    if step is not None:
        finish(folder, step, max_steps, save_steps=2)
        history = [{"step": s, "learning_rate": r, "loss": 1.0} for s, r in RATES.items()]
        summary = [{"step": max_steps, "train_loss": 1.0, "train_runtime": 2.0}]
        write_state(folder, log_history=[*history, *summary])


def write_state(folder: Path, **changes: object) -> None:
    state = json.loads((folder / "trainer_state.json").read_text())
    (folder / "trainer_state.json").write_text(json.dumps({**state, **changes}))


def transformers_trainer(run: Path) -> None:
    for step in (2, 4):
        trainer_files(full(run / f"checkpoint-{step}", step), step)


def trl_lora(run: Path) -> None:
    base = save_base(run.parent / "base")
    for step in (2, 4):
        trainer_files(adapter(run / f"checkpoint-{step}", step, base), step)
    trainer_files(adapter(run, 4, base), None)  # save_model: no state beside it


def llama_factory(run: Path) -> None:
    """LoRA; the run's own folder holds the last adapter, of a step that was not saved before."""
    base = save_base(run.parent / "base")
    trainer_files(adapter(run / "checkpoint-2", 2, base), 2)
    trainer_files(adapter(run, 4, base), 4)
    for folder in (run, run / "checkpoint-2"):
        write_state(folder, log_history=[])  # a log of its own has them
    results = {"epoch": 1.0, "total_flos": 1e9, "train_loss": 1.0, "train_runtime": 2.0}
    for name in ("all_results.json", "train_results.json"):
        (run / name).write_text(json.dumps(results))
    lines = [
        {"current_steps": s, "total_steps": 4, "loss": 1.0, "lr": r, "elapsed_time": "0:00:01"}
        for s, r in RATES.items()
    ]
    lines += [{"current_steps": 4, "total_steps": 4, "epoch": 1.0, "percentage": 100.0}]
    (run / "trainer_log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "training_loss.png").write_bytes(b"\x89PNG")
    (run / "training_args.yaml").write_text("stage: sft\nfinetuning_type: lora\n")


def axolotl_full(run: Path) -> None:
    """Sharded checkpoints; the final model in the run's own folder, and no state beside it."""
    for step in (2, 4):
        trainer_files(full(run / f"checkpoint-{step}", step, max_shard_size="2KB"), step)
    full(run, 4)
    (run / "debug.log").write_text("started\n")
    (run / "runs").mkdir()
    (run / "merged").mkdir()


def axolotl_merged(run: Path) -> None:
    """What `axolotl merge-lora` writes: a run without checkpoints, named itself."""
    trainer_files(full(run, 4), None)


def unsloth_merged(run: Path) -> None:
    """`save_pretrained_merged(…, save_method="merged_16bit")`: shards under one index."""
    full(run, 3, max_shard_size="2KB")


def torchtune_full(run: Path) -> None:
    """`FullModelHFCheckpointer`: a single file with an index, no state, files of the base."""
    for epoch in (0, 1):
        place = full(run / f"epoch_{epoch}", epoch + 1)
        shard = "model-00001-of-00001.safetensors"
        (place / "model.safetensors").rename(place / shard)
        names = {name: shard for name in load_file(place / shard)}
        index = {"metadata": {"total_size": 1}, "weight_map": names}
        (place / "model.safetensors.index.json").write_text(json.dumps(index))
    torchtune_files(run)


def torchtune_lora(run: Path) -> None:
    """The merged weights beside the adapter, which the same folder also holds as a pickle."""
    save_base(run.parent / "base")
    torchtune_full(run)
    for epoch in (0, 1):
        place = run / f"epoch_{epoch}"
        adapter(run / "saved", epoch + 1, "meta-llama/Llama-3.2-1B")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(run / "saved" / name, place / name)
        (place / "adapter_model.pt").write_bytes(pickle.dumps(Bomb(run / "executed")))
    shutil.rmtree(run / "saved")


def torchtune_steps(run: Path) -> None:
    for step in (2, 4):
        full(run / f"step_{step}", step)
    torchtune_files(run)


def torchtune_files(run: Path) -> None:
    (run / "recipe_state").mkdir(parents=True)
    (run / "recipe_state" / "recipe_state.pt").write_bytes(pickle.dumps(Bomb(run / "executed")))
    (run / "torchtune_config.yaml").write_text("epochs: 2\noptimizer: {lr: 2e-5}\n")
    (run / "logs").mkdir()
    lines = [f"Step {s} | loss:1.5 lr:{r} tokens_per_second:9 \n" for s, r in RATES.items()]
    (run / "logs" / "log_1700000000.txt").write_text("".join(lines))


def resized(run: Path) -> None:
    """Tokens were added and the embeddings resized, on one device without padding."""
    for step in (2, 4):
        place = run / f"checkpoint-{step}"
        model = tiny_model(step)
        model.resize_token_embeddings(35, mean_resizing=False)
        with_rows(model, step)
        model.save_pretrained(place)
        tokenizer = tiny_tokenizer()
        tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
        tokenizer.save_pretrained(place)
        trainer_files(place, step)


def with_rows(model, seed: int) -> None:
    """Give the rows of added tokens values that tell them apart."""
    rows = model.get_input_embeddings().weight.data[32:]
    rows.copy_(0.1 * (seed + rows.new_tensor([[1.0], [2.0], [3.0]])).expand_as(rows))


def value_head(run: Path) -> None:
    """A policy of PPO as LLaMA-Factory leaves it: the value head in a file of its own."""
    transformers_trainer(run)
    for step in (2, 4):
        place = run / f"checkpoint-{step}"
        weights = load_file(place / "model.safetensors")
        head = {"v_head.summary.weight": next(iter(weights.values()))[:1].contiguous()}
        save_file(head, place / "value_head.safetensors")


LAYOUTS = {
    "transformers": Layout(transformers_trainer, (2, 4), (2, 4)),
    "trl-lora": Layout(trl_lora, (2, 4), (2, 4), "adapter"),
    "llama-factory": Layout(llama_factory, (2, 4), (2, 4), "adapter"),
    "llama-factory-value-head": Layout(value_head, (2, 4), (2, 4)),
    "axolotl": Layout(axolotl_full, (2, 4), (2, 4)),
    "axolotl-merged": Layout(axolotl_merged, (0,), (4,), rates={}),
    "unsloth-merged": Layout(unsloth_merged, (0,), (3,), rates={}),
    "torchtune": Layout(torchtune_full, (1, 2), (1, 2), rates={}),
    "torchtune-lora": Layout(torchtune_lora, (1, 2), (1, 2), "adapter", rates={}),
    "torchtune-steps": Layout(torchtune_steps, (2, 4), (2, 4)),
}
"""The layouts that are read, by the trainer that writes them."""
