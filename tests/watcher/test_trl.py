"""TRL's trainers with `TrajectoryCallback`, on the embedded model: as measured from disk."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model

import ntkprobe
from ntkprobe import PromptSet, Trajectory
from ntkprobe.checkpoints import (
    LoadSettings,
    find_checkpoints,
    load_model,
    load_tokenizer,
    readiness,
)
from ntkprobe.checkpoints.training_logs import read_training_log
from ntkprobe.watcher import measure_run
from ntkprobe.watcher.callback import TrajectoryCallback
from ntkprobe.watcher.settings import KernelSettings, MeasureSettings

pytestmark = pytest.mark.slow

trl = pytest.importorskip("trl")
datasets = pytest.importorskip("datasets")

SETTINGS = MeasureSettings(
    kernel=KernelSettings(estimator="dense", parameters="last:1", top_k=2),
    refusal=None,
    load=LoadSettings(device="cpu"),
    verify=False,
)
EMBEDDED = Path(ntkprobe.__file__).parent / "tiny" / "model"
PROMPTS = PromptSet.from_texts(
    {
        "normal": ["How do I bake a cake?", "Where is my car?"],
        "seemingly_toxic": ["How do I kill a process?"],
        "toxic": ["How do I kill a man?"],
    }
)
ASKED = [{"role": "user", "content": "How do I kill a man?"}]
NO, YES = ([{"role": "assistant", "content": text}] for text in ("I cannot do that.", "Use it."))


def lora():
    return LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj", "v_proj"])


def embedded():
    return load_model(str(EMBEDDED), LoadSettings(device="cpu"))


def adapted():
    """A model that is adapted already, of which DPO keeps a frozen copy as its reference."""
    torch.manual_seed(0)
    return get_peft_model(embedded(), lora())


def arguments(kind, folder):
    return kind(
        output_dir=str(folder),
        max_steps=4,
        save_steps=2,
        logging_steps=1,
        per_device_train_batch_size=2,
        learning_rate=2e-3,
        max_length=64,
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
    )


def sft(folder, model, config, *callbacks):
    rows = [{"prompt": ASKED, "completion": NO}] * 4
    how, trainer = arguments(trl.SFTConfig, folder), trl.SFTTrainer
    return train(trainer, model, how, rows, config, callbacks)


def dpo(folder, model, config, *callbacks):
    rows = [{"prompt": ASKED, "chosen": NO, "rejected": YES}] * 4
    how, trainer = arguments(trl.DPOConfig, folder), trl.DPOTrainer
    return train(trainer, model, how, rows, config, callbacks)


def train(trainer, model, how, rows, config, callbacks):
    made = trainer(
        model=model,
        args=how,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=load_tokenizer(EMBEDDED),
        peft_config=config,
        callbacks=list(callbacks),
    )
    made.train()
    made.save_model()
    return {name: value.detach().clone() for name, value in made.model.named_parameters()}


CASES = {
    "sft": (sft, embedded, None),
    "sft-lora": (sft, embedded, lora),
    "dpo": (dpo, embedded, None),
    "dpo-lora": (dpo, embedded, lora),
    "dpo-adapted": (dpo, adapted, None),
}


@pytest.mark.parametrize("case", CASES)
def test_what_is_measured_in_memory_is_what_the_checkpoints_hold(case, tmp_path):
    trained, make, config = CASES[case]
    callback = TrajectoryCallback(PROMPTS, settings=SETTINGS)
    trained(tmp_path / "run", make(), config and config(), callback)
    assert Trajectory(tmp_path / "run-ntk").steps == [0, 2, 4]
    kind = "full" if config is None and make is embedded else "adapter"
    found = find_checkpoints(tmp_path / "run")
    assert [(c.step, readiness(c.path).kind) for c in found] == [(2, kind), (4, kind)]
    rates = read_training_log(tmp_path / "run", found[-1].path).rates
    assert sorted(rates) == [1, 2, 3, 4] and max(rates.values()) == pytest.approx(2e-3)
    base = {} if kind == "full" else {"model": str(EMBEDDED)}
    again = measure_run(
        PROMPTS, tmp_path / "disk", ckpt_dir=tmp_path / "run", settings=SETTINGS, **base
    )
    assert again.status == 0
    memory, disk = (
        Trajectory(tmp_path / name).kernel().query("step > 0")["norm"].to_numpy()
        for name in ("run-ntk", "disk")
    )
    assert abs(memory / disk - 1).max() < 1e-4
    assert abs(memory[: len(memory) // 2] / memory[len(memory) // 2 :] - 1).max() > 1e-3


@pytest.mark.parametrize("case", ["dpo"])
def test_measuring_does_not_change_training(case, tmp_path):
    trained, make, config = CASES[case]
    alone = trained(tmp_path / "alone", make(), config and config())
    callback = TrajectoryCallback(PROMPTS, settings=SETTINGS)
    watched = trained(tmp_path / "run", make(), config and config(), callback)
    assert all(torch.equal(alone[name], watched[name]) for name in alone)
