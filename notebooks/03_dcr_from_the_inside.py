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
from tempfile import mkdtemp

import numpy as np
import pandas as pd
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import ntkprobe as ntk
from ntkprobe import tiny
from ntkprobe.chat import resolve_template
from ntkprobe.hooks import capture
from ntkprobe.losses import circle_loss, circle_loss_floor
from ntkprobe.plots import style
from ntkprobe.presets.settings import preset_settings
from ntkprobe.training.dcr import DCRConfig, train_dcr

settings = preset_settings("tiny", "dcr")
layer = settings["layer"]
base_name = settings.pop("model")
config = DCRConfig(output_dir=mkdtemp(), **settings)
refined_folder = train_dcr(base_name, ntk.PromptSet.from_file(tiny.dcr_path()), config)

# %%
base = AutoModelForCausalLM.from_pretrained(tiny.model_path()).eval()
refined = AutoModelForCausalLM.from_pretrained(refined_folder).eval()
tokenizer = AutoTokenizer.from_pretrained(tiny.model_path())
held_out = ntk.PromptSet.from_file(tiny.measure_path()).sample(per_group=15, seed=0)

# %% [markdown]
# ## The features of the layer
#
# Layer ℓ is the output of decoder block ℓ, counted from 1, at the prompt's last token: that is what
# the loss sees. On prompts that no training has seen:


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
# In the plane of the two main directions of the features after refinement:

# %%
sides = np.isin(groups, ["seemingly_toxic", "toxic"])
centre = after.mean(0)
axes_of_most = torch.linalg.svd(after - centre, full_matrices=False).Vh[:2]
with style.in_print:
    figure, panels = style.row(["Before", "After DCR"], height=2.6)
    for ax, unit in zip(panels, (before, after), strict=True):
        plane = ((unit - centre) @ axes_of_most.T).numpy()
        for group in style.in_order(groups):
            look, mine = style.look(group), groups == group
            ax.scatter(
                *plane[mine].T, color=look.colour, marker=look.marker, label=look.label, s=18
            )
        ax.set(xlabel="first direction", ylabel="second direction")
    panels[0].legend(frameon=False)
figure

# %% [markdown]
# ## The loss
#
# With the paper's weights a batch that is perfectly arranged still costs log(1 + |P| |N|) per
# prompt, so what counts is the excess over that floor.

# %%
labels = torch.tensor((groups == "toxic").astype(int))[torch.tensor(sides)]
shape = {"margin": config.margin, "scale": config.scale, "weights": config.weights}
floor = circle_loss_floor(labels, **shape)
pd.Series(
    {
        name: float(circle_loss(unit[torch.tensor(sides)], labels, **shape) - floor)
        for name, unit in (("before", before), ("after", after))
    },
    name="excess of the circle loss",
)

# %% [markdown]
# ## The kernel
#
# Nothing in the loss mentions it, and yet:

# %%
kernels = {
    name: ntk.measure_kernel(model, tokenizer, held_out)
    for name, model in (("before", base), ("after", refined))
}
means = {
    name: kernel.group_means().pivot(
        index="observed_group", columns="updated_group", values="similarity"
    )
    for name, kernel in kernels.items()
}
pd.concat(means, axis=1).round(2)

# %%
across = {name: table.loc["seemingly_toxic", "toxic"] for name, table in means.items()}
assert across["after"] < across["before"]
