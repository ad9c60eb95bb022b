"""What is checked of the model and of the data before the first stage, while nothing is written."""

from ..checkpoints import gguf_file, load_model, load_tokenizer
from ..checkpoints.gguf_models import require_loadable
from ..errors import UserError
from ..prompts.templates import resolve_template
from .splits import draw_sets
from .workspace import Workspace


def require_chat_model(workspace: Workspace) -> None:
    """Check that the model has a chat template, and of a GGUF file that it can be loaded.

    Raises:
        UserError: if it has none, or no tokenizer can be built, or its header tells that the file
            cannot be loaded.
    """
    if (file := gguf_file(workspace.settings.model)) is not None:
        require_loadable(file)
    tokenizer = load_tokenizer(workspace.settings.model, local=False)
    if resolve_template(tokenizer, "auto").raw:
        raise UserError(
            f"{workspace.settings.model} has no chat template: replicate asks a chat model, in its"
            " own template; give one, or put a chat_template into its tokenizer's files"
        )


def require_usable_inputs(workspace: Workspace) -> None:
    """Load the model and draw the sets of prompts, so that what is wrong with them is told now.

    Raises:
        UserError: if the model cannot be loaded or has no chat template, or the files are others
            than those published.
    """  # ruff: ignore[docstring-extraneous-exception]
    require_chat_model(workspace)
    draw_sets(workspace.places, workspace.scale)
    load_model(workspace.settings.model, workspace.load)
