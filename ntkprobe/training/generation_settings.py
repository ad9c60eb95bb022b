"""What a model says of how it generates, such that it can be saved after training.

The Trainer writes the tokenizer's special tokens into a model's `generation_config`; transformers
then refuses to save one that has settings of a mode it does not generate in, as published models
have (a temperature without `do_sample`): at the first checkpoint, after the first steps.
"""

from typing import Any

from ..errors import UserError, one_line

SAMPLING = "temperature top_p min_p top_h typical_p top_k epsilon_cutoff eta_cutoff".split()
BEAMS = "early_stopping length_penalty num_beam_groups diversity_penalty".split()


def leave_out_idle(model: Any) -> list[str]:
    """Remove the settings of sampling, or of beams, from a model that does not generate so.

    Args:
        model: whose `generation_config` is changed; what it generates stays as it is.

    Returns:
        The names of what had a value; none if the configuration can be saved as it is.

    Raises:
        UserError: if it cannot be saved without them either.
    """
    config = getattr(model, "generation_config", None)
    if config is None or _fault(config) is None:
        return []
    idle = [*(SAMPLING * (not config.do_sample)), *(BEAMS * (config.num_beams in (None, 1)))]
    removed = [name for name in idle if getattr(config, name, None) is not None]
    for name in removed:
        setattr(config, name, None)
    if (fault := _fault(config)) is not None:
        raise UserError(f"its generation_config.json could not be saved with the model: {fault}")
    return removed


def _fault(config: Any) -> str | None:
    """Return why a configuration cannot be saved, None if it can."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return one_line(error)
    return None
