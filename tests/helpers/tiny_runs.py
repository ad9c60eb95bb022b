"""Training runs of a random model of a few thousand parameters, as a trainer leaves them."""

import json
import os
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from ntkprobe.cli import main

WORDS = (
    "how do i kill a python process my neighbour bake the cake sorry cannot sure ? . I As".split()
)


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    vocabulary = {word: i for i, word in enumerate(["<unk>", "<eos>", "<pad>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    )


def tiny_model(seed: int = 0, **changes: object) -> Qwen2ForCausalLM:
    sizes = {
        "vocab_size": 32,
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 64,
        "tie_word_embeddings": True,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(Qwen2Config(**{**sizes, **changes}))
        for parameter in model.parameters():  # transformers starts at 0.02: too near to linear
            parameter.data.add_(torch.randn_like(parameter), alpha=0.2)
    return model.eval()


def tiny_adapter(model: torch.nn.Module, seed: int, **changes: object) -> torch.nn.Module:
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "v_proj"], **changes}
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **settings))
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.data.normal_(std=0.3)
    return adapted.eval()


def finish(folder: Path, step: int, max_steps: int, save_steps: int = 10) -> Path:
    """Write what a trainer writes last."""
    state = {"global_step": step, "max_steps": max_steps, "save_steps": save_steps}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    return folder


def save_base(folder: Path, seed: int = 0) -> Path:
    tiny_model(seed).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def full_checkpoint(run: Path, step: int, max_steps: int = 30, **saving: object) -> Path:
    folder = run / f"checkpoint-{step}"
    tiny_model(seed=step).save_pretrained(folder, **saving)
    tiny_tokenizer().save_pretrained(folder)
    return finish(folder, step, max_steps)


def full_run(run: Path, steps: tuple[int, ...] = (10, 20, 30), **saving: object) -> Path:
    for step in steps:
        full_checkpoint(run, step, max_steps=max(steps), **saving)
    return run


def lora_checkpoint(run: Path, step: int, base: Path, max_steps: int = 30) -> Path:
    folder = run / f"checkpoint-{step}"
    model = tiny_model(seed=0)
    model.name_or_path = str(base)
    model.config._name_or_path = str(base)
    tiny_adapter(model, seed=step).save_pretrained(folder)
    return finish(folder, step, max_steps)


def lora_run(root: Path, steps: tuple[int, ...] = (10, 20, 30)) -> Path:
    base = save_base(root / "base")
    for step in steps:
        lora_checkpoint(root / "run", step, base, max_steps=max(steps))
    return root / "run"


@contextmanager
def another_account() -> Generator[None]:
    """Root may read everything, so that it becomes somebody else for a while."""
    was = os.geteuid()
    if was == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(was)


def age(path: Path, seconds: float) -> None:
    """Make a file or a whole folder look `seconds` older."""
    for each in [path, *path.rglob("*")]:
        info = each.stat()
        os.utime(each, ns=(info.st_atime_ns, info.st_mtime_ns - int(seconds * 1e9)))


TEXTS = {
    "normal": ["how do i bake the cake ?", "bake a cake please"],
    "seemingly_toxic": ["how do i kill a python process ?", "kill the process"],
    "toxic": ["how do i kill my neighbour ?", "kill my neighbour please"],
}


def write_prompts(path: Path) -> Path:
    rows = [f"{text},{group}" for group, texts in TEXTS.items() for text in texts]
    path.write_text("\n".join(["prompt,group", *rows]) + "\n")
    return path


def measure_command(run: Path, place: Path, *flags: object) -> int:
    """Run `ntkprobe measure` on a run, into `place`/out, and return its exit status."""
    folders = ["--ckpt-dir", run, "--output-dir", place / "out", "--device", "cpu"]
    prompts = write_prompts(place / "prompts.csv")
    return main([str(a) for a in ("measure", *folders, "--prompts", prompts, *flags)])


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    files = (p for p in sorted(folder.rglob("*")) if p.is_file())
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in files}


def events(folder: Path) -> list[dict]:
    lines = (line for p in folder.glob("events-*.jsonl") for line in p.read_text().splitlines())
    return sorted((json.loads(line) for line in lines), key=lambda event: event["time"])
