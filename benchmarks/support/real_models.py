"""A real model and prompts that a benchmark is given, since none comes with the project."""

import argparse
from pathlib import Path
from typing import Any

import torch

from ntkprobe.checkpoints import load_model, load_tokenizer
from ntkprobe.prompts.prompt_set import PromptSet


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add `--model` and `--prompts`."""
    parser.add_argument("--model", help="a folder or a GGUF file")
    parser.add_argument("--prompts", type=Path, help="what `ntkprobe measure --prompts` takes")


def loaded(given: argparse.Namespace) -> tuple[Any, Any, PromptSet] | None:
    """Return the model, its tokenizer and the prompts, for one thread; None where none is given."""
    if given.model is None or given.prompts is None:
        print("nothing measured: give --model MODEL (a folder or a GGUF file) and --prompts FILE")
        return None
    torch.set_num_threads(1)
    return load_model(given.model), load_tokenizer(given.model), PromptSet.from_file(given.prompts)
