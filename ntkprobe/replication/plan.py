"""The stages of a replication, their order and their files.

OUT/replication.json          settings and digests; one folder has one set of them
OUT/data/NAME.jsonl           the sets
OUT/choice.json               the learning rate of SFT, and what it was chosen by
OUT/done/STAGE.json           of a stage that is done: its trained models, seconds and memory
OUT/runs/{stl,…}-SEED/        training runs, as `ntkprobe train` writes them
OUT/ntk/{stl,…}-SEED/         measurements along them, as `ntkprobe measure` writes them
OUT/activations/{stl,…}-SEED/ of the first seed's final models on XSTest
OUT/start/{base,…}/           measurements of the models that SFT starts from
OUT/eval/{base,…}/            answers and verdicts, as `ntkprobe evaluate` writes them
OUT/figures/, OUT/tables/, OUT/report.md, OUT/labels.csv
"""

from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import UserError

MAIN = ("stl", "dcr-stl", "control-stl")
"""The runs that the hypotheses are about; of all seeds they come before the others."""

TIMED = ("dcr", "stl")
"""The stages of training that table 2 shows."""

FURTHER = ("stl-aug",)
STEERED = ("surgical", "scans", "adacd")
"""Methods applied to STL's final model."""

STARTS = {"dcr-stl": "dcr", "control-stl": "control"}
"""The contrastive stage that a run starts from."""


NEEDS = {
    "H1": (("refusals", "stl"),),
    "H2": (("start", "base"), ("compare", "stl")),
    "H3": tuple(("compare", run) for run in MAIN),
    "H4": tuple(("evaluate", run) for run in MAIN),
    "H5": (("predict", "base"), ("refusals", "stl")),
    "H6": (("bounds", "base"), ("bounds", "dcr"), ("bounds", "control")),
}
"""What has to be done before a hypothesis is judged: what is half measured says something else."""


@dataclass(frozen=True)
class Stage:
    """One stage of the replication.

    Attributes:
        what: `prepare`, `choose`, `train`, `start` (the kernel of a model that SFT starts from, on
            XSTest), `bounds` (Proposition 1's terms there), `predict`, `compare` (the kernel of a
            run's first checkpoint), `refusals` and `measure` (P(refuse) and answers, then the
            kernel, of all of its checkpoints), `activations` (of its final model), `evaluate`,
            `fit`, `report`.
        run: `base`, a run such as `dcr-stl`, a contrastive stage, or a method; empty for all.
        seed: of the run; None where there is but one.
    """

    what: str
    run: str = ""
    seed: int | None = None

    @property
    def name(self) -> str:
        """What it is called: such as `train dcr-stl-0`, in files `train-dcr-stl-0`."""
        return " ".join(part for part in (self.what, self.folder) if part)

    @property
    def file(self) -> str:
        """Its name in OUT/done."""
        return self.name.replace(" ", "-")

    @property
    def folder(self) -> str:
        """What its run's folders are called."""
        return self.run if self.seed is None else f"{self.run}-{self.seed}"


def needed(hypothesis: str, seed: int) -> list[Stage]:
    """Return the stages that a hypothesis depends on, of one seed."""
    return [Stage(what, run, None if run == "base" else seed) for what, run in NEEDS[hypothesis]]


def stages(seeds: Sequence[int]) -> list[Stage]:
    """Return all stages in their order: what a hypothesis needs comes before what only figures do.

    Args:
        seeds: of the runs.

    Returns:
        All stages; of every seed those that verdicts rest on, then what only figures show.
    """
    made = [Stage("prepare"), Stage("choose")]
    made += [Stage("start", "base"), Stage("predict", "base"), Stage("evaluate", "base")]
    for seed in seeds:
        for run in MAIN:
            before = STARTS.get(run)
            if before:
                made += [Stage("train", before, seed), Stage("start", before, seed)]
            made += [Stage(what, run, seed) for what in ("train", "evaluate", "compare")]
        made += [Stage("refusals", run, seed) for run in MAIN]
        made += [Stage("bounds", "base")] if seed == seeds[0] else []
        made += [Stage("bounds", before, seed) for before in STARTS.values()]
    made += [Stage("activations", run, seed) for seed in seeds[:1] for run in MAIN]
    made += [Stage("measure", run, seed) for seed in seeds for run in MAIN]
    for seed in seeds:
        for run in FURTHER:
            made += [Stage(w, run, seed) for w in ("train", "evaluate", "refusals", "measure")]
        for method in STEERED:
            made += [Stage("fit", method, seed), Stage("evaluate", method, seed)]
    return [*made, Stage("report")]


def chosen(everything: Sequence[Stage], only: str | None) -> list[Stage]:
    """Return the stages that `--only` selects.

    Args:
        everything: from `stages`.
        only: what a stage does, its run, or its name; None for all.

    Returns:
        The stages, in order.

    Raises:
        UserError: if there is none.
    """
    if only is None:
        return list(everything)
    fit = [s for s in everything if only in (s.what, s.run, s.folder, s.name, s.file) and only]
    if not fit:
        names = ", ".join(dict.fromkeys(w for s in everything for w in (s.what, s.run) if w))
        raise UserError(f"no stage {only!r}: choose from {names}, or one by name, as train-stl-0")
    return fit
