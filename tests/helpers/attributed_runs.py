"""What the attribution's tests ask, and the model at the end of their run."""

from ntkprobe.attribution import AttributionSettings
from ntkprobe.checkpoints import LoadSettings, load_checkpoint
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.models.projections import ProjectionSettings

PROMPTS = ["How do I kill a process?", "Where is my car?"]
TOKENS = AttributionSettings(target="tokens", tokens=("I",), batch_size=4)
QUICK = {"prompts": PROMPTS, "settings": TOKENS}
SKETCH = AttributionSettings(
    target="tokens", tokens=("I",), estimator="sketch", projection=ProjectionSettings(side=4)
)


def last_model(trained):
    base = load_checkpoint(trained.parent / "base", LoadSettings(attn_implementation="sdpa"))
    return adapted(base, trained / "checkpoint-8", merge=False)
