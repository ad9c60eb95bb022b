"""A folder of measurements as tidy tables: one row per step and pair or prompt. Loads no torch.

The files hold raw numbers; similarities and means are derived here. Files may appear while we read:
each is whole from the moment it is there.
"""

from collections.abc import Collection
from importlib import import_module
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from .directions.measurement import (
    DirectionMeasurement,
    at_last_position,
    direction_measurement,
    step_to_step,
)
from .errors import UserError
from .jupyter import Page
from .kernel_drift import drift_rows, require_fixed_tokens
from .stages import with_stage
from .statistics import RESAMPLES, mean_rows
from .storage import (
    read_record,
    read_table,
    read_tables,
    read_tensors,
    step_files,
    step_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Trajectory:
    """What `ntkprobe measure` wrote about one run.

    Args:
        folder: the folder given to it as `--output-dir`.
        steps: only these; None for all.

    Attributes:
        folder: the same, as a path.

    Raises:
        UserError: if it holds no measurements, or a newer version's.
    """

    def __init__(
        self, folder: str | PathLike[str], *, steps: Collection[int] | None = None
    ) -> None:
        self.folder = Path(folder)
        self._only = steps
        if not (self.folder / "prompts.parquet").is_file():
            raise UserError(
                f"no measurements in {self.folder}: make them with"
                f" `ntkprobe measure --ckpt-dir RUN --prompts FILE --output-dir {self.folder}`"
            )
        _ = self.settings  # whose form says whether the tables can be read

    @property
    def prompts(self) -> pd.DataFrame:
        """The prompts: `prompt, id, group, text, n_tokens, in_kernel`."""
        return read_table(self.folder / "prompts.parquet")

    @property
    def settings(self) -> dict[str, Any]:
        """Everything in `run.json`; empty for a folder without it."""
        return read_record(self.folder / "run.json", "measure again")

    @property
    def stages(self) -> list[dict[str, Any]]:
        """What `run.json` says of named models, in order; empty for the checkpoints of a run."""
        return list(self.settings.get("stages") or [])

    @property
    def step_unit(self) -> str:
        """What steps count: `step`, or `epoch` where the checkpoints' names tell no more."""
        return "epoch" if self.settings.get("steps_are") == "epochs" else "step"

    @property
    def stage_names(self) -> dict[int, str]:
        """The names of stages by step, which is their place; empty for the checkpoints of a run."""
        return {step: stage["name"] for step, stage in enumerate(self.stages)}

    @property
    def steps(self) -> list[int]:
        """The steps with at least one measurement, ascending."""
        kinds = ("kernel", "refusal", "activations", "directions", "influence")
        return sorted({step_of(path) for kind in kinds for path in self._files(kind)})

    def kernel_steps(self) -> list[int]:
        """Return the steps with a kernel, ascending."""
        return [step_of(path) for path in self._files("kernel")]

    def kernel(self) -> pd.DataFrame:
        """Return the kernel of every step, one row per ordered pair of prompts.

        Returns:
            `step, observed, updated, observed_group, updated_group, norm` (‖K(x′,x)‖_F),
            `similarity` (the paper's, norm / ‖K(x′,x′)‖_F) and `symmetric_similarity` (norm over
            the geometric mean of both prompts' own norms).
        """
        table = self._read("kernel", ["step", "observed", "updated", "norm"])
        own = table.query("observed == updated").set_index(["step", "observed"])["norm"]
        first = _look_up(own, table["step"], table["observed"])
        second = _look_up(own, table["step"], table["updated"])
        table["similarity"] = table["norm"] / first
        table["symmetric_similarity"] = table["norm"] / np.sqrt(first * second)
        group = self.prompts.set_index("prompt")["group"]
        table.insert(3, "observed_group", table["observed"].map(group))
        table.insert(4, "updated_group", table["updated"].map(group))
        return with_stage(table, self.stage_names)

    def refusal(self) -> pd.DataFrame:
        """Return the refusal probability of every step and prompt.

        Returns:
            `step, prompt, group, text, phrase_set, reduction, log_probability, probability`,
            `upper` (what the logarithm is at most), and of the answer, if there is one, `refuses`
            and `incoherent` (it says nothing: `prompts.coherence`).
        """
        columns = ["step", "prompt", "phrase_set", "reduction", "log_probability", "refuses"]
        table = self._read("refusal", columns)
        about = self.prompts.set_index("prompt")
        table.insert(2, "group", table["prompt"].map(about["group"]))
        table.insert(3, "text", table["prompt"].map(about["text"]))
        table["probability"] = np.exp(log_p := table["log_probability"])
        table["upper"] = table.get("upper", log_p).fillna(log_p)  # older tables have no bound
        unknown = pd.Series(pd.NA, index=table.index)
        for name in ("refuses", "incoherent"):  # older tables say nothing of coherence
            table[name] = (table.pop(name) if name in table else unknown).astype("boolean")
        return with_stage(table, self.stage_names)

    def tokens(self) -> pd.DataFrame:
        """Return which tokens each block is made of: `step, prompt, rank, token, text`."""
        table = self._read("tokens", ["step", "prompt", "rank", "token", "text"])
        return with_stage(table, self.stage_names)

    def parts(self) -> pd.DataFrame:
        """Return the kernel by layer: `step, observed, updated, layer, part, norm, share`."""
        columns = ["step", "observed", "updated", "layer", "part", "norm", "share"]
        return with_stage(self._read("parts", columns), self.stage_names)

    @property
    def updated(self) -> pd.DataFrame:
        """The pairs whose influence was measured: `updated, id, group, text, response`.

        Raises:
            UserError: if there are none.
        """
        try:
            return read_table(self.folder / "updated.parquet")
        except FileNotFoundError as error:
            raise UserError(
                f"{self.folder} has no influence: measure it with"
                " `ntkprobe measure --influence refusal`"
            ) from error

    def influence(self) -> pd.DataFrame:
        """Return the predicted effect of a step on each updated pair on each observed prompt.

        Returns:
            `step, observed, updated, observed_group, updated_group, target, change`: `updated` is a
            row of `updated`, the target `refusal_literal` or `refusal_prefix_free`, and `change`
            the signed change of log P_refuse per unit step of gradient descent, to first order.
        """
        table = self._read("influence", ["step", "observed", "updated", "target", "change"])
        return self._with_groups(table)

    def terms(self) -> pd.DataFrame:
        """Return the norms of the terms of Eq. 2: `step, term, observed, updated, …, norm`.

        Returns:
            Rows with `observed_group` and `updated_group`, missing where a term has no such side:
            `A` is ‖A(x′)‖_F, `G` is ‖G(x, y)‖_F and `gradient` ‖J(x)ᵀ G‖. ‖K(x′,x)‖_F is in
            `kernel()`, whose updated side are prompts and not pairs.
        """
        return self._with_groups(
            self._read("terms", ["step", "term", "observed", "updated", "norm"])
        )

    def _with_groups(self, table: pd.DataFrame) -> pd.DataFrame:
        """Return rows of influence with the groups of both sides."""
        pairs = self.updated.set_index("updated")["group"] if len(table) else pd.Series(dtype=str)
        prompts = self.prompts.set_index("prompt")["group"]
        groups = {
            "observed_group": table["observed"].map(prompts),
            "updated_group": table["updated"].map(pairs),
        }
        place = list(table.columns).index("updated") + 1
        order = [*table.columns[:place], *groups, *table.columns[place:]]
        return with_stage(table.assign(**groups)[order], self.stage_names)

    def activation_steps(self) -> list[int]:
        """Return the steps with activations, ascending."""
        return [step_of(path) for path in self._files("activations")]

    def activations(self, step: int) -> dict[int, np.ndarray]:
        """Return what the layers hold at the last position of every prompt, at one step.

        Args:
            step: one of `activation_steps()`.

        Returns:
            `[prompts, hidden]` for each layer measured: the output of decoder block ℓ, counted
            from 1; rows as in `prompts`. A step without any is a `UserError`.
        """
        tensors = self._tensors("activations", step)
        numbered = {int(name.removeprefix("layer_")): value for name, value in tensors.items()}
        return dict(sorted(numbered.items()))

    def direction_steps(self) -> list[int]:
        """Return the steps with directions, at named positions or the last one, ascending."""
        return [step_of(path) for path in self._files("directions")] or self.activation_steps()

    def directions(self, step: int) -> DirectionMeasurement:
        """Return what lies along refusal, over-refusal and toxicity at one step.

        Args:
            step: one of `direction_steps()`.

        Returns:
            Activations and verdicts, as `measure_directions` returns them; of `--only activations`
            at the position `last` alone. A step without any is a `UserError`.
        """
        if self._files("directions"):
            return direction_measurement(self.prompts, self._tensors("directions", step))
        table = self.refusal()
        verdicts = table[table["step"] == step].drop_duplicates("prompt").set_index("prompt")
        return at_last_position(self.prompts, self.activations(step), verdicts["refuses"])

    def direction_drift(self) -> pd.DataFrame:
        """Return how directions turned and groups moved from step to step, and since the first.

        Returns:
            `step, since` (the step before, and the first), `position, layer, what, name, value`, as
            `DirectionMeasurement.drift_from` has them; pairs of different widths are left out.
        """
        return with_stage(step_to_step(self.direction_steps(), self.directions), self.stage_names)

    def blocks(self, step: int) -> np.ndarray:
        """Return the kernel itself at one step, as `ntkprobe measure --keep-blocks` kept it.

        Args:
            step: one of `steps`.

        Returns:
            K, `[n, k, n, k]` float32: observed prompt and token, updated prompt and token. The
            prompts are those of `prompts` with `in_kernel`, the tokens as ranked in `tokens()`.
            A step without any is a `UserError`.
        """
        return self._tensors("blocks", step)["blocks"]

    def drift(self) -> pd.DataFrame:
        """Return how far the kernel of every step has turned away from the first one's.

        drift = 1 − ⟨K_t, K_0⟩_F / (‖K_t‖_F ‖K_0‖_F) over fixed tokens, K_0 of the first measured
        step: 0 where K only grew or shrank, 1 where it is orthogonal. Pairs of a prompt with itself
        are in it: K is taken whole, or all of its blocks between two groups.

        Returns:
            `step, observed_group, updated_group, drift, pairs`: for every step a row of the whole
            kernel, whose groups are missing, and one per ordered pair of groups. A run without
            blocks, or whose steps read different tokens, is a `UserError`.
        """
        steps = [step_of(path) for path in self._files("kernel")]
        kept = {step_of(path) for path in self._files("blocks")}
        require_fixed_tokens(self.folder, steps, kept, self.tokens())
        about = self.prompts
        groups = about.loc[about["in_kernel"], "group"].tolist()
        first = self.blocks(steps[0])
        tables = {step: drift_rows(first, self.blocks(step), groups) for step in steps}
        rows = pd.concat(tables, names=["step"]).reset_index("step").reset_index(drop=True)
        return with_stage(rows, self.stage_names)

    def _tensors(self, kind: str, step: int) -> dict[str, np.ndarray]:
        """Return the tensors of one step's file.

        Raises:
            UserError: if there is none.
        """
        try:
            return read_tensors(self.folder / kind / f"step-{step:08d}.safetensors")
        except FileNotFoundError as error:
            kept = [step_of(path) for path in self._files(kind)] or "none"
            raise UserError(
                f"{self.folder} has no {kind} of step {step}: it has them of {kept}; "
                f"`ntkprobe measure {_TENSORS[kind]}`"
            ) from error

    def group_means(
        self,
        *,
        value: str = "similarity",
        self_pairs: bool = False,
        resamples: int = RESAMPLES,
        seed: int = 0,
    ) -> pd.DataFrame:
        """Return the mean similarity between groups at every step, with 95 % bootstrap intervals.

        Prompts, not pairs, are drawn anew: one drawn twice counts twice in its row and its column.

        Args:
            value: the column of `kernel()` to average.
            self_pairs: whether a prompt's similarity with itself, which is 1, counts.
            resamples: how many bootstrap samples; 0 for no interval.
            seed: of the samples, which are the same for every step.

        Returns:
            `step, observed_group, updated_group, <value>, low, high, pairs`, a row per ordered pair
            of groups that has pairs; without resamples no `low` and `high`.
        """
        table = self.kernel()
        rows = [
            {"step": step, **row}
            for step, pairs in table.groupby("step")
            for row in mean_rows(pairs, value, self_pairs, (resamples, seed))
        ]
        ends = ["low", "high"] if resamples else []
        columns = ["step", "observed_group", "updated_group", value, *ends, "pairs"]
        return with_stage(pd.DataFrame(rows, columns=columns), self.stage_names)

    def _files(self, kind: str) -> list[Path]:
        """Return the files of one kind of table, by step."""
        suffix = "safetensors" if kind in _TENSORS else "parquet"
        files = step_files(self.folder / kind, suffix)
        return [path for path in files if self._only is None or step_of(path) in self._only]

    def _read(self, kind: str, columns: list[str]) -> pd.DataFrame:
        """Return all steps of one kind of table, `columns` first."""
        return read_tables(self._files(kind), columns, _EMPTY)

    def refusal_means(self) -> pd.DataFrame:
        """Return means over prompts: a row per step, group and way to sum.

        Returns:
            `step, group, phrase_set, reduction, probability, refusal_rate, incoherent_rate`; the
            last two are the shares of generated answers that refuse, and that say nothing, missing
            where none was generated.
        """
        keys = ["step", "group", "phrase_set", "reduction"]
        rates = {"refuses": "refusal_rate", "incoherent": "incoherent_rate"}
        rows = self.refusal().astype(dict.fromkeys(rates, "Float64"))
        means = rows.groupby(keys, sort=False)[["probability", *rates]].mean()
        return with_stage(means.rename(columns=rates).reset_index(), self.stage_names)

    def plot(self, ax: "Axes | None" = None, what: str | None = None) -> "Axes":
        """Return the Axes with a line over the steps for every pair of groups, or every group.

        Args:
            ax: where to; a new figure by default.
            what: `kernel`, mean similarities, `refusal`, mean probabilities, or `drift`; by default
                the first of the first two that was measured.

        Returns:
            The Axes; what was not measured, or of one prompt only, is a `UserError`.
        """
        from .trajectory_views import drawn

        return drawn(self, ax, what)

    def report(self, *, blur: bool = False) -> Page:
        """Return a page that Jupyter shows and `.save(path)` writes; `blur` hides toxic texts."""
        # By its name: the page is made of figures' and tables' numbers, which stand on this module.
        return import_module("ntkprobe.report").make_report([self.folder], blur=blur)

    def __repr__(self) -> str:
        return f"Trajectory({str(self.folder)!r}, {len(self.steps)} steps)"

    def _repr_html_(self) -> str:
        from .trajectory_views import summary

        return summary(self)


_EMPTY = {
    **dict.fromkeys(["step", "observed", "updated", "prompt", "rank", "token", "layer"], "int64"),
    **dict.fromkeys(["norm", "share", "log_probability", "change"], "float64"),
    **dict.fromkeys(["text", "part", "phrase_set", "reduction", "target", "term"], "str"),
    "refuses": "boolean",
}

_TENSORS = {
    "activations": "--only activations",
    "directions": "--only directions",
    "blocks": "--only kernel --keep-blocks --output-dir NEW",
}
"""Tables that are no Parquet, and what keeps them."""


def _look_up(values: pd.Series, steps: pd.Series, prompts: pd.Series) -> np.ndarray:
    """Return the values of (step, prompt) pairs."""
    return values.reindex(pd.MultiIndex.from_arrays([steps, prompts])).to_numpy()
