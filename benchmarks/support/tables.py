"""Markdown tables, written beside the script that made them."""

import os
import platform
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def machine() -> str:
    """Return what the figures were measured with, in a line."""
    return (
        f"{len(os.sched_getaffinity(0))} cores ({platform.machine()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def write(script: str, *sections: str) -> Path:
    """Write the sections to the Markdown file beside `script`, and return its path."""
    path = Path(script).with_suffix(".md")
    path.write_text("\n\n".join(sections) + "\n")
    return path
