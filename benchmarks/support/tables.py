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
        f"{len(os.sched_getaffinity(0))} cores ({processor()}), "
        f"{torch.get_num_threads()} threads, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def processor() -> str:
    """Return the processor's name and the vector instructions that torch uses on it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{(names or [platform.machine()])[0]}, {torch.backends.cpu.get_cpu_capability()}"


def write(script: str, *sections: str, kind: str = "") -> Path:
    """Write the sections to the Markdown file beside `script`, and return its path.

    Args:
        script: the benchmark's file.
        sections: of the page.
        kind: what its name ends with, where there is a page for each kind of machine.
    """
    path = Path(script).with_suffix(".md")
    path = path.with_stem(f"{path.stem}_{kind}") if kind else path
    path.write_text("\n\n".join(sections) + "\n")
    return path
