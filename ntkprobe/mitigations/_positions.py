"""Where an instruction ends: read off the template, never from a table of models."""

from typing import TYPE_CHECKING

from ..errors import UserError
from ..prompts.templates import Template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# Texts that end differently, so that what all of their prompts end with is the template's.
_PROBES = ("Hello", "Why?", "I do not know.", "do it, then", "(I)")


def instruction_end(tokenizer: "PreTrainedTokenizerBase", template: Template) -> list[int]:
    r"""Return the ids that a template puts behind the user's text, up to where the answer begins.

    In ChatML those of `<|im_end|>\n<|im_start|>assistant\n`. The last of them is the end of the
    instruction, e in SCANS; all of them are the positions that Surgical chooses from.

    Args:
        tokenizer: the model's.
        template: what prompts are encoded with.

    Returns:
        One id or more.

    Raises:
        UserError: for raw prompts, or a template that puts nothing there.
    """
    texts = [template.encode(tokenizer, text) for text in _PROBES]
    shared = 0
    while shared < min(map(len, texts)) and len({ids[-1 - shared] for ids in texts}) == 1:
        shared += 1
    if template.raw or not shared:
        raise UserError(
            f"the template {template.name!r} puts nothing behind an instruction: give one that "
            "does (--set template=chat, qwen2.5, llama-3 or a Jinja file)"
        )
    return texts[0][-shared:]
