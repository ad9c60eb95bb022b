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
# # One pair of prompts
#
# The kernel between two prompts from its definition, the four estimators that compute it, and
# what the step size does to finite differences. Everything here runs on the embedded model in
# seconds.

# %%
import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer

from ntkprobe import tiny
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, norms, similarity, symmetric_similarity, top_tokens
from ntkprobe.plots import style

folder = tiny.model_path()
model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager").eval()
tokenizer = AutoTokenizer.from_pretrained(folder)

# %% [markdown]
# A harmless prompt and a toxic one, with the chat template and the generation prompt, so that the
# last position is the one where the answer begins. Each is read at its ten most probable tokens.

# %%
texts = ["How do I kill a stuck program?", "How do I kill a stranger?"]
prompts = [
    tokenizer.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"][0]
    for text in texts
]
probes = [
    Probe(ids, tokens)
    for ids, tokens in zip(prompts, top_tokens(model, prompts, k=10), strict=True)
]
for text, probe in zip(texts, probes, strict=True):
    print(f"{text:32}", *(repr(tokenizer.decode([token])) for token in probe.tokens[:6]))

# %% [markdown]
# ## From the definition
#
# $K(x', x) = J(x')\, J(x)^\top$, where row $i$ of $J(x)$ is the gradient of the logit of token
# $i$. Three loops and one product:


# %%
def jacobian(probe):
    """Return the gradients of the logits that are read, one row each."""
    rows = []
    for token in probe.tokens:
        logits = model(probe.input_ids[None]).logits[0, -1]
        gradients = torch.autograd.grad(logits[token], list(model.parameters()))
        rows.append(torch.cat([gradient.flatten().double() for gradient in gradients]))
    return torch.stack(rows)


J = [jacobian(probe) for probe in probes]
K = torch.stack([torch.stack([row @ column.T for column in J]) for row in J]).transpose(1, 2)
K.shape, norms(K)

# %% [markdown]
# Divided by the observed prompt's own norm, as in the paper: rows observed, columns updated. This
# table is not symmetric, and here one of its entries is above 1. Below it, divided by both
# prompts' norms:

# %%
print(similarity(norms(K)).numpy().round(3))
print(symmetric_similarity(norms(K)).numpy().round(3))

# %% [markdown]
# ## Four ways to the same number
#
# `Dense` is the definition above, `Gram` never forms a gradient, `ForwardMode` pushes each
# gradient forward again, and `FiniteDifference` is the paper's approximation (A.6) of that: with
# $\varepsilon = 10^{-3}$ it moves the parameters by $\varepsilon w$ as printed, or by
# $\varepsilon w / \lVert w\rVert$.

# %%
estimators = {
    "dense": Dense(),
    "gram": Gram(),
    "forward mode": ForwardMode(),
    "finite difference, along w / ‖w‖": FiniteDifference(step="unit"),
    "finite difference, along w (paper)": FiniteDifference(step="raw"),
}
errors = {}
for name, estimator in estimators.items():
    difference = (estimator(model, probes, "all") - K).norm() / K.norm()
    errors[name] = float(difference)
pd.Series(errors, name="relative error")

# %% [markdown]
# ## The step of the finite differences
#
# A step too long sees the model bend; a step too short drowns in rounding: the error is a U.
# Along an unnormalised $w$ the true length of the step is $\varepsilon\,\lVert w\rVert$, so where
# the bottom lies depends on the gradients, and moves along a run.

# %%
steps = np.logspace(-6, 0, 7)
rows = []
for kind in ("raw", "unit"):
    for eps in steps:
        columns = FiniteDifference(eps=eps, step=kind, tolerance=np.inf)(model, probes, "all")
        rows.append((kind, eps, float((columns - K).norm() / K.norm())))
table = pd.DataFrame(rows, columns=["step", "eps", "error"])

with plt.rc_context(style.PRINT):
    figure, (ax,) = style.row(["Finite differences against the exact kernel"])
    for (kind, rows_), colour in zip(table.groupby("step"), ("#555555", "#117733"), strict=True):
        name = {"raw": "along w", "unit": "along w / ‖w‖"}[kind]
        ax.loglog(rows_["eps"], rows_["error"], "o-", color=colour, label=name)
    ax.axvline(1e-3, color="0.8", lw=1, zorder=0)
    ax.set(xlabel="step ε (grey: the paper's)", ylabel="relative error of K", ylim=(1e-5, 30))
    ax.legend(frameon=False, loc="upper left")
figure

# %% [markdown]
# The lengths of the gradients, and the best step of each kind. Their ratio explains why the two
# curves are one curve, shifted:

# %%
lengths = torch.cat(J).norm(dim=1)
print(f"‖w‖ from {lengths.min():.0f} to {lengths.max():.0f}")
best = table.loc[table.groupby("step")["error"].idxmin()].set_index("step")
assert max(errors["gram"], errors["dense"], errors["forward mode"]) < 1e-5
assert (best["error"] < 0.01).all()
best
