"""Estimates of the time, memory and disk that a replication needs.

Times are computed from counts of multiplications and from the speed of this machine, measured for a
second, and are corrected by the stages of their kind that are done, of any seed; else by all that
are. They are right within a factor of two or three.
"""

import json
import shutil
from collections.abc import Callable, Sequence
from statistics import median
from time import perf_counter

from ..errors import UserError
from .plan import MAIN, Stage, stages
from .workspace import Workspace, shape_of

PROMPT, OWN, ANSWER = 45, 20, 100
"""Tokens of a prompt in its template, of those its own, and of a pair, about."""

PHRASES = 110
"""Tokens that P(refuse) of a prompt is worth, about: its own, and those of the phrases."""

SHARE = 0.35
"""Of a machine's speed with large matrices that training and measuring reach, about."""

DECODING = 6
"""Times slower than its multiplications a token is decoded: the weights are read for each."""

ACTIVATION = 70
"""Bytes that training keeps for each token, block and number of the width, about, in float32."""

GIB = 2**30


def lines(workspace: Workspace, todo: Sequence[Stage]) -> list[str]:
    """Return a line for the time of each stage, and for the time, memory and disk of all."""
    shape = shape_of(workspace.settings.model)
    speed = multiplications_per_second() * SHARE
    ratios = _ratios(workspace, lambda stage: work(workspace, stage, shape) / speed)
    every = [ratio for some in ratios.values() for ratio in some]
    made, total = [], 0.0
    for stage in todo:
        # The median: a stage that was paused, or ran beside another, is no measure of the others.
        factor = median(ratios.get(stage.what) or every or [1.0])
        guess = 0.0 if workspace.done(stage) else factor * work(workspace, stage, shape) / speed
        total += guess
        about = "done" if workspace.done(stage) else f"about {_span(guess)}"
        made.append(f"{stage.name}: {about}")
    about = "corrected by the stages done" if every else "from a trial of this machine"
    return [
        *made,
        f"time: about {_span(total)}, {about}; with the machine to itself, within a factor of two"
        " or three",
        f"memory: about {memory(workspace, shape) / GIB:.1f} GiB",
        f"disk: about {disk(workspace, todo, shape) / GIB:.1f} GiB in {workspace.out}",
    ]


def require_capacity(workspace: Workspace) -> None:
    """Check that there is enough memory and disk.

    Raises:
        UserError: saying how much is needed, and how much there is.
    """
    import torch

    from ..models.memory import free_bytes

    shape = shape_of(workspace.settings.model)
    needed = disk(workspace, stages(workspace.settings.seeds), shape)
    parent = next(p for p in (workspace.out, *workspace.out.resolve().parents) if p.exists())
    held = sum(f.stat().st_size for f in workspace.out.rglob("*") if f.is_file())
    free = shutil.disk_usage(parent).free + held
    if free < needed:
        raise UserError(
            f"too little disk: about {needed / GIB:.1f} GiB are needed in {workspace.out},"
            f" {free / GIB:.1f} GiB are there; free some, or give another --output-dir"
        )
    device = torch.device(workspace.load.placement())
    there, wanted = free_bytes(device), memory(workspace, shape)
    if there < wanted:
        raise UserError(
            f"too little memory: about {wanted / GIB:.1f} GiB are needed, {there / GIB:.1f} GiB"
            f" are free on {device}; close other programs, or take a smaller model"
        )


def work(workspace: Workspace, stage: Stage, shape: dict[str, int]) -> float:
    """Return about how many floating-point operations a stage takes."""
    scale, size = workspace.scale, shape["parameters"]
    token = 2.0 * size
    pair = min(scale.length, ANSWER) * token
    if stage.what == "train":
        if stage.run in ("dcr", "control"):
            return (scale.dcr_toxic + 250) * scale.dcr_epochs * PROMPT * 3 * token
        return _sft(workspace) * 2 * pair
    if stage.what == "choose":
        rates = len(scale.rates) if len(scale.rates) > 1 else 0
        return rates * (
            _sft(workspace) * 2 * pair + _answers(workspace, 2 * scale.development) * token
        )
    kernel = 3 * scale.kernel * OWN * 22 * token
    if stage.what == "start":
        return kernel
    if stage.what == "bounds":
        width = shape.get("width", 0)
        return 3 * scale.bounds * PROMPT * (width + scale.directions) * 2 * token
    if stage.what in ("compare", "measure"):
        # The first checkpoint of the main runs is measured by `compare`.
        first = stage.run in MAIN
        return kernel * (1 if stage.what == "compare" else len(scale.checkpoints) - first)
    if stage.what == "refusals":
        asked = sum(scale.along)
        each = (_answers(workspace, asked) + asked * PHRASES) * token
        return len(scale.checkpoints) * each
    if stage.what == "activations":
        return 450 * PROMPT * token  # XSTest's prompts
    if stage.what == "predict":
        return (scale.along[0] + 2 * scale.pairs) * (OWN * 22 + PHRASES) * token
    if stage.what == "evaluate":
        number = 2167 if scale.limit is None else 8 * scale.limit
        return _answers(workspace, number) * token * (2 if stage.run == "adacd" else 1)
    return scale.anchors * 3 * PROMPT * 4 * token if stage.what == "fit" else 0.0


def memory(workspace: Workspace, shape: dict[str, int]) -> float:
    """Return about the most memory that is needed, in bytes: that of the contrastive training."""
    scale = workspace.scale
    weights = 4.0 * shape["parameters"]
    optimiser = 3 * weights * workspace.scale.depth
    rows = max(scale.batch * min(scale.length, 512), scale.dcr_batch * PROMPT)
    logits = 4.0 * rows * shape.get("vocabulary", 0) * 4
    states = ACTIVATION * rows * shape["num_hidden_layers"] * shape.get("width", 0)
    return 0.6 * GIB + 2 * weights + optimiser + logits + states


def disk(workspace: Workspace, todo: Sequence[Stage], shape: dict[str, int]) -> float:
    """Return about how much is written, in bytes."""
    weights = 4.0 * shape["parameters"]
    contrastive = sum(s.what == "train" and s.run in ("dcr", "control") for s in todo)
    others = sum(s.what == "train" for s in todo) - contrastive
    adapters = len(workspace.scale.checkpoints) * (weights * 0.03 + 8e6)
    return 3.2 * weights * contrastive + others * adapters + 2e7 * len(workspace.settings.seeds)


def multiplications_per_second() -> float:
    """Return how many floating-point operations a second this machine does on large matrices."""
    import torch

    matrix = torch.rand(768, 768)
    begin, times = perf_counter(), 0
    while perf_counter() - begin < 1:
        matrix @ matrix
        times += 1
    return times * 2 * 768**3 / (perf_counter() - begin)


def _sft(workspace: Workspace) -> int:
    """Return how many pairs a run of SFT sees."""
    scale = workspace.scale
    return scale.steps(workspace.pairs) * scale.batch * scale.accumulate


def _answers(workspace: Workspace, number: int) -> float:
    """Return the tokens that so many answers are worth."""
    return number * (PROMPT + DECODING * min(workspace.scale.tokens, 200))


def _ratios(workspace: Workspace, guess: Callable[[Stage], float]) -> dict[str, list[float]]:
    """Return measured over guessed seconds of the stages done, of every seed, by their kind."""
    record = workspace.out / "replication.json"
    recorded = json.loads(record.read_text()).get("seeds", []) if record.is_file() else []
    ratios: dict[str, list[float]] = {}
    for stage in stages(tuple({*recorded, *workspace.settings.seeds})):
        path = workspace.out / "done" / f"{stage.file}.json"
        if path.is_file() and (guessed := guess(stage)):
            measured = float(json.loads(path.read_text())["seconds"])
            ratios.setdefault(stage.what, []).append(measured / guessed)
    return ratios


def _span(seconds: float) -> str:
    """Return a length of time as text."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
