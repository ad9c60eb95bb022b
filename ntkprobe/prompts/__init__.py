"""Prompts: read from files, in groups, and encoded as tokens by a chat template."""

from .prompt_set import Prompt as Prompt
from .prompt_set import PromptSet as PromptSet
