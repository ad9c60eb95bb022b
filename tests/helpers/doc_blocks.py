"""The code blocks of a Markdown page, and how they are run: Python as it is, `ntkprobe` lines."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from tiny_runs import full_run

from ntkprobe.cli import main
from ntkprobe.training.runs import located

_FENCE = re.compile(
    r"(?:^\*Not run[^:]*: (?P<reason>[^*]+)\*\n\n)?^```(?P<language>\w*)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A fenced block; `reason` says why it is not run, in a line that readers see above it."""

    language: str
    text: str
    reason: str | None


def blocks(page: Path) -> list[Block]:
    """Return the blocks of a page, in order."""
    found = _FENCE.finditer(page.read_text())
    return [Block(one["language"], one["text"], one["reason"]) for one in found]


def make_world(folder: Path) -> None:
    """Put a run and a file of prompts where the pages say they are."""
    full_run(folder / "RUN", steps=(10, 20))
    texts = {
        "normal": "how do i kill {} ?",
        "toxic": "kill {} how do i ?",
        "seemingly_toxic": "do i kill {} how ?",
    }
    rows = [(t.format(word), group) for group, t in texts.items() for word in ("a", "the", "my")]
    pd.DataFrame(rows, columns=["prompt", "group"]).to_csv(folder / "prompts.csv", index=False)


def run_console(text: str) -> None:
    """Run each line as a command of ours, on the embedded model, and see it succeed."""
    for line in embedded(text).splitlines():
        program, *words = shlex.split(line, comments=True)
        assert program == "ntkprobe", line
        assert main(words) == 0, line


def run_python(text: str, names: dict[str, object]) -> None:
    """Run a block with the embedded model in place of one from the hub."""
    exec(compile(embedded(text), "<docs>", "exec", dont_inherit=True), names)


def embedded(text: str) -> str:
    """Return a block with the embedded model in place of one from the hub."""
    return text.replace("Qwen/Qwen2.5-1.5B", located("package:ntkprobe.tiny/model"))
