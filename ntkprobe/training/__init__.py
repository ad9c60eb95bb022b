"""Training writes ordinary Hugging Face checkpoints and knows nothing of measuring."""
