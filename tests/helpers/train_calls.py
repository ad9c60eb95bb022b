"""Quick calls of `ntkprobe train`, of either stage."""

from pathlib import Path

from ntkprobe.cli import main


def dcr(files: Path, output: Path, *more: str) -> int:
    words = ["train", "dcr", "--model", files / "base", "--prompts", files / "prompts.csv"]
    words += ["--layer", "2", "--max-steps", "2", "--batch-size", "8", "--device", "cpu"]
    return main([str(word) for word in (*words, "--output-dir", output, *more)])


def sft(files: Path, output: Path, *more: str) -> int:
    words = ["train", "sft", "--model", files / "base", "--general", files / "general.json"]
    words += ["--safe", files / "safe.json", "--accumulate", "2", "--max-steps", "2"]
    words += ["--n-general", "8", "--n-safe", "4", "--device", "cpu"]
    return main([str(word) for word in (*words, "--output-dir", output, *more)])
