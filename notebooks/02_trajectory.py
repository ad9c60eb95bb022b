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
# # A run, checkpoint by checkpoint
#
# What `ntkprobe measure` wrote about the demo's two runs: safety alignment of the base model (STL),
# and of the model that was contrastively refined first (DCR → STL). The measurements are committed
# beside `figures/regenerate.py`; no model is loaded here. The demo is a constructed world: it shows
# how to read these tables, not what a real model does.

# %%
from pathlib import Path

import ntkprobe as ntk
from ntkprobe.figures import fig1, fig3, fig4, fig5, fig6, find_runs, neighbours, pairs

here = Path("figures/demo") if Path("figures/demo").is_dir() else Path("../figures/demo")
runs = find_runs([here])
runs

# %% [markdown]
# A `Trajectory` is a folder; everything it says is a tidy table.

# %%
run: ntk.Trajectory = runs["stl"]
run.kernel().head()

# %%
run.refusal().head()

# %% [markdown]
# ## Figure 1: refusals of toxic and seemingly toxic prompts rise together

# %%
fig1.draw(fig1.numbers(runs))

# %% [markdown]
# ## Figure 3: similarity hardly changes during safety alignment
#
# What tied the two groups before tied them throughout; what DCR untied stays untied.

# %%
fig3.draw(fig3.numbers(runs))

# %% [markdown]
# ## Figures 4 and 5: defence against compliance, and the probability of refusing

# %%
fig4.draw(fig4.numbers(runs))

# %%
fig5.draw(fig5.numbers(runs))

# %% [markdown]
# ## Figure 6: before safety alignment begins

# %%
fig6.draw(fig6.numbers(runs))

# %% [markdown]
# ## Behind the means
#
# A mean over 625 pairs hides which prompts are near. The distributions, and the nearest toxic
# prompt of each seemingly toxic one:

# %%
pairs.draw(pairs.numbers(runs))

# %%
neighbours.draw(neighbours.numbers(runs))

# %% [markdown]
# ## Does similarity foretell over-refusal?
#
# Prompt by prompt: the similarity of a seemingly toxic prompt to its nearest toxic one before
# alignment, beside its refusal probability at the end.

# %%
nearest = neighbours.numbers({"stl": run}).set_index("prompt")["similarity"]
last = run.refusal().query("step == step.max() and reduction == 'literal'").set_index("prompt")
table = last.loc[nearest.index, ["text", "probability"]].assign(nearest=nearest)
print("rank correlation:", round(table["nearest"].corr(table["probability"], method="spearman"), 2))
table.sort_values("nearest", ascending=False).head(8)
