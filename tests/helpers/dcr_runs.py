"""Small runs of the contrastive stage, their weights, and batches of its trainer."""

from pathlib import Path

import torch
import training_world as world
from safetensors.torch import load_file

from ntkprobe.models.parameters import effective_parameters
from ntkprobe.training.dcr import DCRConfig, DCRTrainer

TOKENIZER = world.tokenizer()


def config(folder, **changes) -> DCRConfig:
    settings = {"layer": 2, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "max_steps": 4}
    return DCRConfig(output_dir=str(folder), use_cpu=True, **{**settings, **changes})


def trainer(folder, model=None, prompts=None, tokenizer=TOKENIZER, **changes) -> DCRTrainer:
    model = world.network() if model is None else model
    prompts = world.prompts() if prompts is None else prompts
    changes = {"save_strategy": "no", **changes}
    return DCRTrainer(model, config(folder, **changes), prompts, tokenizer)


def batch_of(made: DCRTrainer, *rows: int) -> dict[str, torch.Tensor]:
    return made.data_collator([made.train_dataset[row] for row in rows])


def weights(model) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in effective_parameters(model).items()}


def read(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")
