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
# # DCR from the inside
#
# Contrastive refinement pulls seemingly toxic and toxic prompts apart at the output of one block
# and leaves everything above it as it is. Here: the features before and after, the loss, and what
# both do to the kernel. The embedded model, a minute or so on two cores.

# %%
import json
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from matplotlib import pyplot as plt
from transformers import AutoModelForCausalLM, AutoTokenizer

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.models.architecture import capture
from ntkprobe.plots import style
from ntkprobe.presets.settings import preset_settings
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.training.dcr import DCRConfig, train_dcr
from ntkprobe.training.losses import circle_loss, circle_loss_floor

settings = preset_settings("tiny", "dcr")
layer = settings["layer"]
base_name = settings.pop("model")
config = DCRConfig(output_dir="runs/notebook-dcr", **settings)
refined_folder = train_dcr(base_name, ntk.PromptSet.from_file(tiny.dcr_path()), config)

# %%
base = AutoModelForCausalLM.from_pretrained(tiny.model_path()).eval()
refined = AutoModelForCausalLM.from_pretrained(refined_folder).eval()
tokenizer = AutoTokenizer.from_pretrained(tiny.model_path())
held_out = ntk.PromptSet.from_file(tiny.measure_path()).sample(per_group=15, seed=0)

# %% [markdown]
# ## The features of the layer
#
# Layer ℓ is the output of decoder block ℓ, counted from 1, at the prompt's last token: that is
# what the loss sees. On prompts that no training has seen:


# %%
def features(model):
    """Return the unit-length features of the held-out prompts, a row each."""
    template = resolve_template(tokenizer, "auto")
    rows = []
    for prompt in held_out:
        ids = torch.tensor([template.encode(tokenizer, prompt)])
        with torch.no_grad(), capture(model, layer) as outputs:
            model(input_ids=ids, use_cache=False)
        rows.append(outputs[0][0, -1])
    return torch.nn.functional.normalize(torch.stack(rows), dim=-1)


groups = np.array([prompt.group for prompt in held_out])
before, after = features(base), features(refined)


def mean_cosines(unit):
    """Return the mean cosine of the features of two groups, without a prompt's with itself."""
    cosines = (unit @ unit.T).masked_fill(torch.eye(len(unit), dtype=torch.bool), torch.nan).numpy()
    names = style.in_order(groups)
    return pd.DataFrame(
        [[np.nanmean(cosines[np.ix_(groups == a, groups == b)]) for b in names] for a in names],
        names,
        names,
    ).round(2)


pd.concat({"before": mean_cosines(before), "after": mean_cosines(after)}, axis=1)

# %% [markdown]
# In the plane of the two main directions of the features after refinement, on one scale. The loss
# pulled the two groups apart that it was given. It was never told about normal prompts: each goes
# to the side that it is nearer to, and some go to the toxic one.

# %%
sides = np.isin(groups, ["seemingly_toxic", "toxic"])
centre = after.mean(0)
main = torch.linalg.svd(after - centre, full_matrices=False).Vh[:2]
with plt.rc_context(style.PRINT):
    figure, panels = style.row(["Before", "After DCR"], height=2.8)
    for ax, unit in zip(panels, (before, after), strict=True):
        plane = ((unit - centre) @ main.T).numpy()
        for group in style.in_order(groups):
            look, points = style.group_style(group), plane[groups == group].T
            ax.scatter(*points, color=look.colour, marker=look.marker, label=look.label, s=18)
        ax.set(xlabel="first direction", ylabel="second direction")
        ax.set(xlim=(-1.1, 1.2), ylim=(-0.9, 0.6))
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
figure

# %% [markdown]
# ## The loss
#
# With the paper's weights a batch that is perfectly arranged still costs log(1 + |P| |N|) per
# prompt, so what counts is the excess over that floor: here on the held-out prompts.

# %%
labels = torch.tensor((groups == "toxic").astype(int))[torch.tensor(sides)]
shape = {"margin": config.margin, "scale": config.scale, "weights": config.weights}
floor = circle_loss_floor(labels, **shape)
excess = {
    name: float(circle_loss(unit[torch.tensor(sides)], labels, **shape) - floor)
    for name, unit in (("before", before), ("after", after))
}
pd.Series(excess, name="excess of the circle loss")

# %% [markdown]
# And along training, on each batch of 32; the floor is that of a batch with as many prompts of
# either side:

# %%
state = sorted(Path("runs/notebook-dcr").glob("checkpoint-*/trainer_state.json"), key=str)[-1]
log = pd.DataFrame(json.loads(state.read_text())["log_history"]).dropna(subset="loss")
half = config.per_device_train_batch_size // 2
with plt.rc_context(style.PRINT):
    figure, (ax,) = style.row(["Contrastive refinement"])
    ax.plot(log["step"], log["loss"], color="#117733")
    ax.axhline(
        float(circle_loss_floor(torch.tensor([0, 1] * half), **shape)), color="0.6", lw=1, ls="--"
    )
    ax.set(xlabel="optimiser step", ylabel="loss (dashed: its floor)", ylim=(0, None))
figure

# %% [markdown]
# ## The kernel
#
# Nothing in the loss mentions it, and yet:

# %%
kernels = {
    name: ntk.measure_kernel(model, tokenizer, held_out, by="layer")
    for name, model in (("before", base), ("after", refined))
}
means = {
    name: kernel.group_means().pivot(
        index="observed_group", columns="updated_group", values="similarity"
    )
    for name, kernel in kernels.items()
}
pd.concat(means, axis=1).round(2)

# %% [markdown]
# Which parameters is that a statement about? The paper's Proposition 1 bounds the kernel over the
# parameters below ℓ where the tail is frozen, and its A.6 measures a subset, "e.g." the last blocks
# and the head. The similarity of seemingly toxic to toxic prompts over three selections. (This
# model's embedding is its head, so that every selection here contains it.)

# %%
selections = ["all", f"below:{layer}", "last:2+head"]


def across(model, parameters):
    """Return the mean similarity of seemingly toxic (observed) and toxic (updated) prompts."""
    found = ntk.measure_kernel(model, tokenizer, held_out, parameters=parameters).group_means()
    pair = found.query("observed_group == 'seemingly_toxic' and updated_group == 'toxic'")
    return float(pair["similarity"].iloc[0])


table = pd.DataFrame(
    {
        name: [across(model, parameters) for parameters in selections]
        for name, model in (("before", base), ("after", refined))
    },
    index=selections,
)
table.round(2)

# %% [markdown]
# And by layer: what each contributes to the mean over all parameters.


# %%
def contributions(kernel):
    """Return every layer's share of the mean similarity, seemingly toxic against toxic."""
    rows = kernel.parts.merge(kernel.frame(), on=["observed", "updated"])
    pair = rows.query("observed_group == 'seemingly_toxic' and updated_group == 'toxic'")
    place = pair["layer"].astype("Int64").astype("string").fillna(pair["part"])
    pairs = len(pair[["observed", "updated"]].drop_duplicates())
    return (pair["share"] * pair["similarity"]).groupby(place).sum() / pairs


pd.DataFrame({name: contributions(kernel) for name, kernel in kernels.items()}).round(3)

# %%
assert table.loc["all", "after"] < table.loc["all", "before"]
assert excess["after"] < excess["before"]
