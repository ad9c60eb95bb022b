"""A LoRA run of a random model with its steps recorded, and its attribution, once for all tests."""

import pytest
import training_world as world
from attributed_runs import QUICK

import ntkprobe as ntk
from ntkprobe.training.callbacks import StepCallback
from ntkprobe.training.sft import SFTConfig, train_sft

SETTINGS = {"n_general": 10, "n_safe": 6, "gradient_accumulation_steps": 1, "max_steps": 8}


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Return the folder of the run; no test changes it."""
    root = tmp_path_factory.mktemp("attribution")
    base = world.saved(root / "base")
    config = SFTConfig(
        output_dir=str(root / "run"),
        use_cpu=True,
        save_at=[0, 4, 8],
        learning_rate=2e-3,
        lora_dropout=0.0,
        **SETTINGS,
    )
    train_sft(base, world.general(10), world.safe(6), config, callbacks=[StepCallback()])
    return root / "run"


@pytest.fixture(scope="session")
def whole(trained):
    """Return what the run's pairs did to two prompts."""
    return ntk.attribute(trained, **QUICK)
