"""The prompts of a measurement that were refused in the end."""

from os import PathLike

from ..errors import UserError
from ..prompts.prompt_set import Prompt, PromptSet
from ..trajectory import Trajectory


def refused_prompts(folder: str | PathLike[str]) -> PromptSet:
    """Return the prompts that were refused at the last step measured, other than toxic ones.

    A refusal is a generated answer that refuses; where none were generated, P(refuse) of at least
    one half.

    Args:
        folder: of `ntkprobe measure`.

    Returns:
        The prompts, in their order.

    Raises:
        UserError: if no refusals were measured, or nothing was refused.
    """
    run = Trajectory(folder)
    rows = run.refusal()
    if rows.empty:
        raise UserError(f"{run.folder} has no refusals: measure them without --only kernel")
    rows = rows[(rows["step"] == rows["step"].max()) & (rows["reduction"] == "literal")]
    refused = rows["refuses"].fillna(rows["probability"] >= 0.5).astype(bool)
    kept = (
        rows[refused & (rows["group"] != "toxic")].drop_duplicates("prompt").sort_values("prompt")
    )
    if kept.empty:
        raise UserError(
            f"{run.folder}: no prompt but toxic ones was refused at step {rows['step'].max()}: "
            'name one with --prompt "…"'
        )
    texts = zip(kept["text"], kept["group"], strict=True)
    return PromptSet(tuple(Prompt(text, group) for text, group in texts))
