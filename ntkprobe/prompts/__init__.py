"""Prompts: read from files, held in groups, and written as tokens by a chat template."""

from .prompt_set import Prompt as Prompt
from .prompt_set import PromptSet as PromptSet
