"""The embedded default: a constructed world, its base model, tokenizer and texts.

Importing it loads none of them: the functions say where the files are.
"""

from .files import dcr_path, general_path, measure_path, model_path, safe_path

__all__ = ["dcr_path", "general_path", "measure_path", "model_path", "safe_path"]
