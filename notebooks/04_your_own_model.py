# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own model and run, in ten lines
#
# Put the name or folder of a causal language model of the Hugging Face hub in place of `name`,
# and a file with columns `prompt` and `group` in place of the embedded prompts. As it stands, the
# embedded model is measured.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

import ntkprobe as ntk
from ntkprobe import tiny

name = str(tiny.model_path())  # such as "Qwen/Qwen2.5-1.5B"
model = AutoModelForCausalLM.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
prompts = ntk.PromptSet.from_file(tiny.measure_path()).sample(per_group=8, seed=0)

kernel = ntk.measure_kernel(model, tokenizer, prompts)
kernel

# %%
ax = kernel.plot()

# %%
ntk.measure_refusal(model, tokenizer, prompts)

# %% [markdown]
# Can these numbers be trusted on this model? `verify` compares the estimator with plain backward
# passes, and raises an error if they differ.

# %%
print(ntk.verify(model, tokenizer, prompts))

# %% [markdown]
# ## A run
#
# Give `ckpt_dir` a folder with `checkpoint-N` folders, full models or LoRA adapters. Without one,
# a short run of the embedded model is made here.

# %%
from pathlib import Path

from ntkprobe.presets.settings import preset_settings
from ntkprobe.training.data import read_pairs
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.watcher import measure_run

ckpt_dir = Path("runs/notebook-sft")
settings = preset_settings("tiny", "sft") | {"num_train_epochs": 1, "save_at": [0, 10, 50]}
config = SFTConfig(output_dir=str(ckpt_dir), **{k: v for k, v in settings.items() if k != "model"})
general, safe = read_pairs(tiny.general_path()), read_pairs(tiny.safe_path())
aligned = train_sft(name, general, safe, config)

# %% [markdown]
# Every complete checkpoint is measured once. Run again, it goes on where it was. On the command
# line: `ntkprobe measure --ckpt-dir RUN --prompts prompts.csv --output-dir OUT`, with `--follow`
# while it trains, and `ntkprobe figures OUT`.

# %%
out = Path("runs/notebook-sft-ntk")
measure_run(prompts, out, ckpt_dir=ckpt_dir)
run = ntk.Trajectory(out)
run

# %%
ax = run.plot()

# %%
run.group_means().query("observed_group == 'seemingly_toxic' and updated_group == 'toxic'")
