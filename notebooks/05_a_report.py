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
# # A page to explore
#
# Figures answer the questions that they were made for. For the others (which prompts, at which
# step, because of what?) there is one page about a run, or several, that can be clicked through and
# sent to somebody. On the command line: `ntkprobe report OUT... --output-file report.html`.
#
# The measurements here are those of `ntkprobe demo`, which are committed in `figures/demo`: a
# constructed world, which shows the instrument at work and says nothing about real models.

# %%
from pathlib import Path

from IPython.display import Image

import ntkprobe as ntk
from ntkprobe.report import make_report

repository = Path(ntk.__file__).parents[1]
demo = repository / "figures" / "demo"

# %% [markdown]
# ## One run
#
# A trajectory shows its page in a frame of its own, which may run its own scripts and ask for
# nothing. On a page that runs no notebooks, such as a code host's, you see a picture of it below.

# %%
ntk.Trajectory(demo / "stl-ntk").report()

# %% [markdown]
# ## Two runs side by side, as a file
#
# Toxic texts are blurred here until they are pointed at. The file needs nothing else: open it in a
# browser, or attach it to a mail. It holds all prompts and training pairs in plain text.

# %%
page = make_report([demo], blur=True)
round(page.save("report.html").stat().st_size / 1e6, 1)  # MB

# %%
Image(filename=repository / "docs" / "report.png")
