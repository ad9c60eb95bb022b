"""What LoRA saves in the contrastive stage (A.10.2): `python benchmarks/dcr_memory.py`.

Each way of training takes a few steps in a process of its own; its memory is the peak of that
process during training, less what it had with the model loaded.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import torch
import training_world as world
from support.tables import machine, table, write

from ntkprobe.training.dcr import DCRConfig, DCRTrainer

# As in a model of billions, parameters take more than the activations of a batch.
SHAPE = {
    "hidden_size": 1024,
    "num_hidden_layers": 8,
    "intermediate_size": 2816,
    "num_attention_heads": 16,
    "vocab_size": 8000,
}
BATCH = {"layer": 4, "per_device_train_batch_size": 8, "template": "raw"}
WAYS = {
    "all parameters (the paper)": {},
    "all parameters, λ = 0": {"nll_weight": 0.0},
    "LoRA, r = 8": {"lora_rank": 8},
    "LoRA, r = 8, λ = 0": {"lora_rank": 8, "nll_weight": 0.0},
    "LoRA, r = 8, λ = 0, activations recomputed": {
        "lora_rank": 8,
        "nll_weight": 0.0,
        "gradient_checkpointing": True,
    },
}


def main() -> None:
    """Run every way and write the table."""
    rows = {name: measured(name) for name in WAYS}
    first = rows["all parameters (the paper)"]
    shown = [
        (
            name,
            f"{row['trained']:,}",
            f"{row['extra']:.0f} MiB",
            f"{row['extra'] / first['extra']:.2f}",
            f"{row['seconds'] / first['seconds']:.2f}",
        )
        for name, row in rows.items()
    ]
    header = ("trained", "parameters", "memory above the loaded model", "ratio", "CPU time, ratio")
    text = (
        f"A random Qwen2 of {first['all']:,} parameters ({first['loaded']:.0f} MiB with the "
        "process), 8 blocks, the loss at block 4, batches of 8 prompts of about 20 tokens, "
        f"float32, AdamW. {machine()}; by `python benchmarks/dcr_memory.py`."
    )
    print(write(__file__, "# Memory of the contrastive stage", text, table(header, shown)))


def measured(name: str) -> dict[str, float]:
    """Return what one way takes, in a process of its own."""
    call = [sys.executable, __file__, name]
    return json.loads(subprocess.run(call, check=True, capture_output=True).stdout)


def train(name: str) -> dict[str, float]:
    """Train some steps one way, and return parameters, MiB and seconds for a step."""
    model = world.network("qwen2", **SHAPE)
    with tempfile.TemporaryDirectory() as folder:
        settings = BATCH | {"max_steps": 3, "save_strategy": "no", "disable_tqdm": True}
        config = DCRConfig(output_dir=folder, use_cpu=True, **settings | WAYS[name])
        trainer = DCRTrainer(model, config, world.prompts(), world.tokenizer())
        loaded = status("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")
        begin = time.process_time()  # others may be using the machine
        trainer.train()
        return {
            "trained": trainer.parameter_report["trained"],
            "all": sum(p.numel() for p in model.parameters()),
            "loaded": loaded,
            "extra": status("VmHWM") - loaded,
            "seconds": time.process_time() - begin,
        }


def status(field: str) -> float:
    """Return a figure of this process in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


if __name__ == "__main__":
    if len(sys.argv) > 1:
        torch.set_num_threads(1)
        print(json.dumps(train(sys.argv[1])))
    else:
        main()
