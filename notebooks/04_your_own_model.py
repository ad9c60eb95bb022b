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
# Put the name or folder of any causal language model of the Hugging Face hub in place of `name`. As
# it stands, the embedded model is measured.

# %%
from transformers import AutoModelForCausalLM, AutoTokenizer

import ntkprobe as ntk
from ntkprobe import tiny

name = tiny.model_path()  # such as "Qwen/Qwen2.5-1.5B"
model = AutoModelForCausalLM.from_pretrained(name).eval()
tokenizer = AutoTokenizer.from_pretrained(name)
prompts = ntk.PromptSet.from_file(tiny.measure_path()).sample(per_group=8, seed=0)

# %% [markdown]
# One moment of one model:

# %%
kernel = ntk.measure_kernel(model, tokenizer, prompts)
kernel.group_means()

# %%
refusals = ntk.measure_refusal(model, tokenizer, prompts)
refusals.group_means()

# %% [markdown]
# A whole run, from the command line, while it trains or afterwards:
#
# ```
# ntkprobe measure --ckpt-dir RUN --prompts prompts.csv --output-dir OUT [--follow]
# ntkprobe figures OUT
# ```
#
# and then, as in the notebook before last, `ntk.Trajectory("OUT")`.
