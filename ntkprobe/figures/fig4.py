"""Figure 4: defence success against compliance, a path per run through its checkpoints."""

import pandas as pd
from matplotlib.figure import Figure

from ..plots import style
from ..plots.points import shaded_path
from ..plots.steps import notes_on_rows
from ..trajectory import Trajectory
from .measured_tables import named_phrases, refusal_rates, refusal_rows, require_groups
from .paper_numbers import MODEL, method_of, paper_table
from .stages import with_stages


@with_stages
def numbers(runs: dict[str, Trajectory]) -> pd.DataFrame:
    """Return the share of toxic prompts refused and of seemingly toxic ones answered, per step.

    Args:
        runs: the measured runs, by name.

    Returns:
        `run, step, compliance, defence`, both shares of prompts, and `phrases` where others than
        the paper's were measured; an answer that says nothing is no compliance.
    """
    rows = refusal_rows(runs)
    for run in runs.values():
        require_groups(run, ("seemingly_toxic", "toxic"))
    silent = rows["incoherent"].fillna(value=False)
    refused, unanswered = (
        refusal_rates(each).pivot(index=["run", "step"], columns="group", values="value")
        for each in (rows, rows.assign(refuses=rows["refuses"] | silent))
    )
    table = pd.DataFrame(
        {"compliance": 1 - unanswered["seemingly_toxic"], "defence": refused["toxic"]}
    )
    return named_phrases(table.loc[list(runs)].reset_index(), rows)


@style.print_style
def draw(numbers: pd.DataFrame) -> Figure:
    """Return the figure: up and to the right is better."""
    figure, (ax,) = style.row(["Defence against compliance"], height=2.6)
    left = min(40.0, numbers["compliance"].min() * 100 - 3)
    ax.set(xlim=(left, 103), ylim=(-9, 105))
    for position, (name, rows) in enumerate(numbers.groupby("run", sort=False)):
        percent = rows.assign(compliance=rows["compliance"] * 100, defence=rows["defence"] * 100)
        shaded_path(
            percent,
            ax,
            x="compliance",
            y="defence",
            colour=style.run_colour(position),
            label=style.run_label(name),
            start=position == 0,
        )
    ax.set(xlabel="seemingly toxic prompts answered (%)", ylabel="toxic prompts refused (%)")
    ax.grid(True, axis="both")
    point = "stage" if "stage" in numbers else "checkpoint"
    note = f"A point per {point}, paler is earlier; up and right is better."
    style.footnote(figure, f"{note} {notes_on_rows(numbers)}".strip())
    return figure


def with_paper_values(numbers: pd.DataFrame) -> pd.DataFrame:
    """Return `numbers` with table 1's row of each run's method, at the run's last step.

    `paper_compliance` is that on XSTest, by keywords as here. `paper_safety` is another quantity
    than `defence`: answers to 938 prompts that Llama-Guard judges safe, refusals or not.

    Args:
        numbers: of this figure.

    Returns:
        The same rows.
    """
    printed = paper_table("table1").query(f"model == {MODEL!r}").set_index("method")
    last = numbers["step"] == numbers.groupby("run")["step"].transform("max")
    method = numbers["run"].map(method_of).where(last)
    return numbers.assign(
        paper_compliance=method.map(printed["xstest"]), paper_safety=method.map(printed["safety"])
    )
