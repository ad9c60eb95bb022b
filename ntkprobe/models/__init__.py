"""Everything about one loaded causal language model: its parts, parameters and results."""
