"""Where the shipped files are."""

from importlib.resources import files
from pathlib import Path

FOLDER = Path(str(files("ntkprobe.tiny")))
"""The package's folder."""


def model_path() -> Path:
    """Return the folder of the base model and its tokenizer, an ordinary checkpoint."""
    return FOLDER / "model"


def measure_path() -> Path:
    """Return the prompts to measure on, of all three groups (`group,prompt`)."""
    return FOLDER / "measure.csv"


def dcr_path() -> Path:
    """Return the prompts for the contrastive stage: 250 seemingly toxic, 500 toxic."""
    return FOLDER / "dcr.csv"


def general_path() -> Path:
    """Return the normal pairs for safety SFT (Alpaca's fields)."""
    return FOLDER / "general.jsonl"


def safe_path() -> Path:
    """Return the toxic prompts with refusals for safety SFT (`prompt`, `response`)."""
    return FOLDER / "safe.jsonl"
