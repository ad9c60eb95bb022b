"""Small runs of the alignment stage, and what their folders hold."""

import json
from pathlib import Path

import torch
import training_world as world
from safetensors.torch import load_file

from ntkprobe.training.sft import SFTConfig, train_sft

TOKENIZER = world.tokenizer()
SMALL = {"n_general": 20, "n_safe": 6, "gradient_accumulation_steps": 2, "max_steps": 4}


def config(folder, **changes) -> SFTConfig:
    return SFTConfig(output_dir=str(folder), use_cpu=True, **{**SMALL, **changes})


def train(base, folder, **changes) -> Path:
    return train_sft(base, world.general(), world.safe(), config(folder, **changes))


def report(folder: Path) -> dict:
    return json.loads((folder / "training.json").read_text())


def adapter(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter_model.safetensors")
