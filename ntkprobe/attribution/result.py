"""What each training pair did to each observed prompt, as arrays, tables, a figure and a page."""

from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import UserError, one_line
from ..jupyter import paragraph, table
from ..plots import style
from ..plots.bars import ranked_bars
from ..prompts.prompt_set import PromptSet
from ..storage import write_json, write_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_TOWARDS, _AWAY = "towards", "away"
_SHOWN = 10  # prompts in Jupyter
_NAMES = {
    "refusal": "log P(refuse)",
    "refusal_prefix_free": "log P(refuse)",
    "tokens": "log π(tokens)",
    "response": "log π(response)",
}


@dataclass(frozen=True, eq=False)
class Attribution:
    """The attribution of m prompts to n training pairs.

    Attributes:
        observed: the prompts.
        values: what is explained, at the last checkpoint: log P(refuse), say, `[m]` float64.
        pairs: the training pairs, a row each: `pair` (row of the data), `source`, `prompt`,
            `response`, `tokens` (with a loss).
        changes: the change of the value by a pair over the run, to first order, `[m, n]` float64;
            positive is towards refusal (or whatever the target is).
        errors: standard errors of these, from independent projections; 0 where they are exact.
        agreement: share of the checkpoints that count, at which a pair's part has the sign of the
            sum, `[m, n]`.
        weights: by step of the checkpoints, how much each counted.
        settings: everything that the numbers depend on.
        remarks: what a reader should know, a sentence each.
    """

    observed: PromptSet
    values: np.ndarray
    pairs: pd.DataFrame
    changes: np.ndarray
    errors: np.ndarray
    agreement: np.ndarray
    weights: dict[int, float]
    settings: dict[str, Any] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()

    @property
    def shares(self) -> np.ndarray:
        """Each change over the sum of the sizes of a prompt's changes, `[m, n]`, with its sign."""
        total = np.abs(self.changes).sum(1, keepdims=True)
        return np.divide(self.changes, total, out=np.zeros_like(self.changes), where=total > 0)

    @property
    def quantity(self) -> str:
        """What the values are, in formulas."""
        return _NAMES[self.settings.get("target", "refusal")]

    def frame(self) -> pd.DataFrame:
        """Return a row per prompt and pair.

        Returns:
            `observed, pair, source, change, error, share, agreement`.
        """
        m, n = self.changes.shape
        return pd.DataFrame(
            {
                "observed": np.repeat(np.arange(m), n),
                "pair": np.tile(self.pairs["pair"].to_numpy(), m),
                "source": np.tile(self.pairs["source"].to_numpy(), m),
                "change": self.changes.ravel(),
                "error": self.errors.ravel(),
                "share": self.shares.ravel(),
                "agreement": self.agreement.ravel(),
            }
        )

    def top(self, prompt: int = 0, count: int = 5) -> pd.DataFrame:
        """Return the pairs that pushed one prompt most, towards and away.

        Args:
            prompt: its row in `observed`.
            count: pairs each way at most.

        Returns:
            `direction, rank, pair, source, change, error, share, agreement, prompt, response`.

        Raises:
            UserError: if there is no such prompt.
        """
        if not 0 <= prompt < len(self.observed):
            raise UserError(f"no prompt {prompt}: there are {len(self.observed)}, from 0")
        change = self.changes[prompt]
        order = np.argsort(change, kind="stable")
        ways = {_TOWARDS: order[::-1][:count], _AWAY: order[:count]}
        tables = []
        for way, places in ways.items():
            kept = [p for p in places if (change[p] > 0) == (way == _TOWARDS) and change[p] != 0]
            rows = self.pairs.iloc[kept].drop(columns="tokens").reset_index(drop=True)
            numbers = {
                "change": change[kept],
                "error": self.errors[prompt, kept],
                "share": self.shares[prompt, kept],
                "agreement": self.agreement[prompt, kept],
            }
            found = rows.assign(direction=way, rank=np.arange(1, len(kept) + 1), **numbers)
            tables.append(found)
        columns = ["direction", "rank", "pair", "source", *numbers, "prompt", "response"]
        return pd.concat(tables, ignore_index=True)[columns]

    def by_source(self) -> pd.DataFrame:
        """Return the changes summed over the pairs of each source, a row per prompt and source."""
        rows = self.frame().groupby(["observed", "source"], sort=False)
        return rows.agg(pairs=("change", "size"), change=("change", "sum")).reset_index()

    @style.print_style
    def figure(self, prompts: int = 4, count: int = 3) -> "Figure":
        """Return a figure: the pairs that pushed each prompt most, both ways, under it.

        Args:
            prompts: how many of the prompts, from the first.
            count: pairs each way.
        """
        tables = [self.top(row, count).assign(observed=row) for row in range(len(self.observed))]
        rows = pd.concat(tables[:prompts], ignore_index=True)
        texts = {r: _short(f"{r}: {self.observed[r].text}") for r in range(len(self.observed))}
        lines = len(rows) + rows["observed"].nunique()
        figure, axes = style.panels(1, 1, height=0.8 + 0.175 * lines)
        ax = axes[0, 0]
        labels = rows["prompt"].map(_short)
        ranked_bars(
            rows.assign(heading=rows["observed"].map(texts), label=labels, push=rows["change"]),
            ax,
            colours=(style.group_style("toxic").colour, style.group_style("normal").colour),
            texts=(style.group_style("seemingly_toxic").text, style.group_style("toxic").text),
        )
        low, high = rows["change"].min(), rows["change"].max()
        ax.set_xlim(min(0, 1.05 * low), max(0, 1.05 * high) or None)
        ax.set_xlabel(f"change of {self.quantity} by the pair, over the run")
        return figure

    def write(self, folder: str | PathLike[str]) -> list[Path]:
        """Write the tables and what they depend on.

        Args:
            folder: where to: `attribution.parquet`, `top.parquet` (20 pairs each way),
                `pairs.parquet`, `prompts.parquet`, `attribution.json`.

        Returns:
            The files.
        """
        place = Path(folder)
        prompts = self.observed.frame().assign(value=self.values)
        tops = pd.concat([self.top(r, 20).assign(observed=r) for r in range(len(self.observed))])
        tables = {"attribution": self.frame(), "pairs": self.pairs, "prompts": prompts, "top": tops}
        for name, rows in tables.items():
            write_table(place / f"{name}.parquet", rows)
        record = {
            "settings": self.settings,
            "weights": {str(step): weight for step, weight in self.weights.items()},
            "remarks": list(self.remarks),
        }
        write_json(place / "attribution.json", record)
        return [place / f"{name}.parquet" for name in tables]

    def __repr__(self) -> str:
        """Return what was attributed to how much."""
        return f"Attribution(of {len(self.observed)} prompts to {len(self.pairs)} pairs)"

    def _repr_html_(self) -> str:
        shown = range(min(_SHOWN, len(self.observed)))
        parts = [paragraph(f"{self!r}, {self.settings.get('estimator', 'exact')}")]
        parts += [paragraph(remark) for remark in self.remarks]
        for row in shown:
            about = f"{self.observed[row].text}: {self.quantity} = {self.values[row]:.2f}"
            parts += [paragraph(about), table(self.top(row), index=False)]
        if left := len(self.observed) - len(shown):
            parts.append(paragraph(f"… and {left} more prompts"))
        return "".join(parts)


def _short(text: str) -> str:
    return style.shortened(one_line(text), 60)
