"""The embedded default: a constructed world, its base model, tokenizer and texts."""
