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
# The demo's two runs, shortened to a minute or so: safety alignment of the embedded model (STL),
# and of the same model after contrastive refinement (DCR → STL). Both are trained, measured at a
# few checkpoints, and drawn. The demo is a constructed world: this shows how to read the figures,
# not what a real model does. The whole of it is `ntkprobe demo`; its measurements are committed
# in `figures/demo`.

# %%
from pathlib import Path

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.figures import fig1, fig3, fig4, fig5, fig6, find_runs, layers, neighbours, pairs
from ntkprobe.presets.settings import preset_settings
from ntkprobe.training.data import read_pairs
from ntkprobe.training.dcr import DCRConfig, train_dcr
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.watcher import KernelSettings, MeasureSettings, measure_run

place = Path("runs/notebook")

# %% [markdown]
# ## Train
#
# A stage writes checkpoints into a folder, and `final/` when it is done; a finished stage is left
# alone when this is run again. On the command line: `ntkprobe train dcr --preset tiny
# --output-dir …` and `ntkprobe train sft --preset tiny …`.

# %%
contrast = preset_settings("tiny", "dcr")
base = contrast.pop("model")
refined = train_dcr(
    base,
    ntk.PromptSet.from_file(tiny.dcr_path()),
    DCRConfig(output_dir=str(place / "dcr"), **contrast),
)

# %%
shorter = {"num_train_epochs": 2, "save_at": [0, 5, 20, 50, 100]}
align = {**preset_settings("tiny", "sft"), **shorter}
align.pop("model")
general, safe = read_pairs(tiny.general_path()), read_pairs(tiny.safe_path())
for model, name in ((base, "stl"), (str(refined), "dcr-stl")):
    train_sft(model, general, safe, SFTConfig(output_dir=str(place / name), **align))

# %% [markdown]
# ## Measure
#
# Twelve held-out prompts of each group for the kernel, split by layer, and all of them for
# refusals: `ntkprobe measure --ckpt-dir RUN --prompts FILE --per-group 12 --by layer`.

# %%
prompts = ntk.PromptSet.from_file(tiny.measure_path())
settings = MeasureSettings(kernel=KernelSettings(by="layer", per_group=12))
for name in ("stl", "dcr-stl"):
    measure_run(prompts, place / f"{name}-ntk", ckpt_dir=place / name, settings=settings)

runs = find_runs([place])
list(runs)

# %% [markdown]
# A `Trajectory` is such a folder; everything it says is a tidy table.

# %%
run = runs["stl"]
run

# %%
run.kernel().head()

# %%
run.refusal().head()

# %% [markdown]
# ## Figure 1: refusals of toxic and of seemingly toxic prompts
#
# Without DCR (top) both rise. The bands are Wilson's 95 % intervals over prompts.

# %%
fig1.draw(fig1.numbers(runs))

# %% [markdown]
# ## Figure 3: the similarity between groups during safety alignment
#
# In the paper these lines are nearly flat. In this world they are not, and after DCR the
# similarity of seemingly toxic prompts (observed) to toxic ones (updated) even ends above STL's,
# while figure 1 shows no refusal that spreads: a similarity is evidence, not a verdict.

# %%
fig3.draw(fig3.numbers(runs))

# %% [markdown]
# Every checkpoint was measured at its own ten most probable tokens (the paper says top-k, not how
# many and not of which checkpoint), and alignment changes what these are. With the tokens of step 0
# kept throughout (`--top-k-at first`), STL's lines hardly change, so that the tokens are not what
# moves them; a good part of the rise after DCR is gone, so that there they were a part of it:

# %%
same = MeasureSettings(kernel=KernelSettings(per_group=12, top_k_at="first"), refusal=None)
for name in ("stl", "dcr-stl"):
    folder = place / "same-tokens" / f"{name}-ntk"
    measure_run(prompts, folder, ckpt_dir=place / name, settings=same)
fig3.draw(fig3.numbers(find_runs([place / "same-tokens"])))

# %% [markdown]
# ## Figures 4 and 5: defence against compliance, and the probability of refusing

# %%
fig4.draw(fig4.numbers(runs))

# %%
fig5.draw(fig5.numbers(runs))

# %% [markdown]
# ## Figure 6: before safety alignment begins
#
# Rows are observed prompts, columns updated ones. DCR is there for the pair seemingly toxic and
# toxic; the map shows what it does to the others, too.

# %%
fig6.draw(fig6.numbers(runs))

# %% [markdown]
# ## By layer
#
# K is a sum over the parameters, so the similarity is a sum over layers and parts: which of them
# tie the two groups together?

# %%
layers.draw(layers.numbers(runs))

# %% [markdown]
# ## Behind the means
#
# A mean over 144 pairs hides which prompts are near. The distributions, and the nearest toxic
# prompt of each seemingly toxic one:

# %%
pairs.draw(pairs.numbers(runs))

# %%
neighbours.draw(neighbours.numbers(runs))

# %% [markdown]
# ## Does similarity foretell over-refusal?
#
# Prompt by prompt: the similarity of a seemingly toxic prompt to its nearest toxic one before
# alignment, beside its refusal probability at the end. Here it does not. Twelve prompts settle
# nothing, and the norm forgets signs; with the whole demo, or a model of yours, there are more.

# %%
nearest = neighbours.numbers({"stl": run}).set_index("prompt")["similarity"]
last = run.refusal().query("step == step.max() and reduction == 'literal'").set_index("prompt")
table = last.loc[nearest.index, ["text", "probability"]].assign(nearest=nearest)
print("rank correlation:", round(table[["nearest", "probability"]].rank().corr().iloc[0, 1], 2))
table.sort_values("nearest", ascending=False)
