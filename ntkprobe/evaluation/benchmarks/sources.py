"""Reads the prompts of a benchmark: from the hub, from a file, or the embedded ones.

An argument of `--benchmark` is NAME, NAME=FILE, FILE, or FILE=safe and FILE=unsafe for a file
without a column for the kind of its prompts. FILE may be some rows of a file, as in
FILE:COLUMN=VALUE.
"""

import logging
import re
from typing import Any

from ...errors import UserError, one_line
from ...prompts.selections import PromptSelection
from .benchmark_prompts import BenchmarkPrompts
from .catalogue import BENCHMARKS
from .own_files import read_own
from .schema import KINDS, Benchmark

EMBEDDED = "tiny"
"""The name of the embedded prompts, which the embedded models are measured on."""


def read_benchmark(word: str) -> BenchmarkPrompts:
    """Return the prompts that an argument of `--benchmark` names.

    Args:
        word: NAME, NAME=FILE, FILE or FILE=KIND.

    Returns:
        Its prompts.

    Raises:
        UserError: if there is no such benchmark, or it cannot be read.
    """
    name, equals, rest = word.partition("=")
    if name == EMBEDDED and not equals:
        from ...tiny import measure_path

        return read_own(PromptSelection(measure_path()), EMBEDDED, "Apache-2.0")
    if name in BENCHMARKS:
        return _published(BENCHMARKS[name], PromptSelection.parse(rest) if equals else None)
    file = PromptSelection.parse(word)
    if file.mark in (None, *KINDS) and file.path.suffix:
        return read_own(file)
    known = ", ".join([EMBEDDED, *BENCHMARKS])
    raise UserError(f"no benchmark {name!r}: choose from {known}, or give a file, as FILE=safe")


def _published(benchmark: Benchmark, file: PromptSelection | None) -> BenchmarkPrompts:
    """Return a benchmark's prompts from its file, or from the hub.

    Raises:
        UserError: if there is neither.
    """
    if file is not None:
        numbered, where = file.unmarked().numbered(), str(file)
    elif benchmark.hub is None:
        raise UserError(
            f"{benchmark.name} is a file that no hub has: get it from {benchmark.source} and give "
            f"--benchmark {benchmark.name}=FILE"
        )
    else:
        numbered = list(enumerate(_from_hub(benchmark), start=1))
        where = f"hub:{benchmark.hub.path}"
    return BenchmarkPrompts(
        name=benchmark.name,
        table=benchmark.table(numbered, where),
        source=where,
        licence=benchmark.licence,
        published=benchmark.rows,
        found=len(numbered),
    )


def _from_hub(benchmark: Benchmark) -> list[dict[str, Any]]:
    """Return a benchmark's rows from the hub.

    Raises:
        UserError: if `datasets` is not installed, or the hub does not give them.
    """
    try:
        from datasets import load_dataset
    except ImportError:
        raise UserError(
            f"{benchmark.name} comes from the hub, for which `datasets` is needed: "
            f"pip install 'ntkprobe[benchmarks]', or give --benchmark {benchmark.name}=FILE"
        ) from None
    assert benchmark.hub is not None
    hub = benchmark.hub
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it logs every retry
    try:
        return list(load_dataset(hub.path, hub.config, split=hub.split))
    except Exception as error:  # datasets raises what its many parts raise
        raise UserError(_refused(benchmark, error)) from error


def _refused(benchmark: Benchmark, error: Exception) -> str:
    """Return in one line why the hub does not give a benchmark, and what to do."""
    assert benchmark.hub is not None
    place, text = benchmark.hub.path, f"{type(error).__name__} {error}"
    instead = f"or give its file: --benchmark {benchmark.name}=FILE ({benchmark.source})"
    if re.search(r"gated|401|403|[Aa]uthenticat|restricted", text):
        return f"{place} is gated: accept its terms on huggingface.co and set HF_TOKEN, {instead}"
    return f"{place} cannot be read from the hub ({one_line(text)[:160]}): try again, {instead}"
