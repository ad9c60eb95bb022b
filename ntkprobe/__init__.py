"""Shows why a language model starts to refuse: the eNTK between prompts, and refusal probability.

Every name here is imported when it is first used, so that `import ntkprobe` does not load torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import openmp as openmp  # before torch, which reads the policy when it is loaded

__version__ = "0.1.0"

if TYPE_CHECKING:
    from .errors import UserError as UserError
    from .measurement import ActivationMeasurement as ActivationMeasurement
    from .measurement import KernelMeasurement as KernelMeasurement
    from .measurement import RefusalMeasurement as RefusalMeasurement
    from .measurement import measure_activations as measure_activations
    from .measurement import measure_between as measure_between
    from .measurement import measure_kernel as measure_kernel
    from .measurement import measure_refusal as measure_refusal
    from .measurement.full_vocabulary import full_vocabulary_norms as full_vocabulary_norms
    from .measurement.influence import Influence as Influence
    from .measurement.influence import apply_step as apply_step
    from .measurement.influence import influence as influence
    from .measurement.influence import predict_step as predict_step
    from .measurement.influence import read_steps as read_steps
    from .measurement.influence import record_step as record_step
    from .measurement.proposition1 import BoundMeasurement as BoundMeasurement
    from .measurement.proposition1 import measure_bounds as measure_bounds
    from .measurement.random_probes import random_probe_norms as random_probe_norms
    from .measurement.verification import verify as verify
    from .prompts import Prompt as Prompt
    from .prompts import PromptSet as PromptSet
    from .training.dcr import DCRConfig as DCRConfig
    from .training.dcr import DCRTrainer as DCRTrainer
    from .training.steps import StepCallback as StepCallback
    from .trajectory import Trajectory as Trajectory
    from .watcher.callback import TrajectoryCallback as TrajectoryCallback

_HOMES = {
    "ActivationMeasurement": "measurement",
    "BoundMeasurement": "measurement.proposition1",
    "DCRConfig": "training.dcr",
    "DCRTrainer": "training.dcr",
    "Influence": "measurement.influence",
    "KernelMeasurement": "measurement",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "RefusalMeasurement": "measurement",
    "StepCallback": "training.steps",
    "Trajectory": "trajectory",
    "TrajectoryCallback": "watcher.callback",
    "UserError": "errors",
    "apply_step": "measurement.influence",
    "full_vocabulary_norms": "measurement.full_vocabulary",
    "influence": "measurement.influence",
    "measure_activations": "measurement",
    "measure_between": "measurement",
    "measure_bounds": "measurement.proposition1",
    "measure_kernel": "measurement",
    "measure_refusal": "measurement",
    "predict_step": "measurement.influence",
    "random_probe_norms": "measurement.random_probes",
    "read_steps": "measurement.influence",
    "record_step": "measurement.influence",
    "verify": "measurement.verification",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Return a public name or a submodule, imported now (PEP 562).

    Raises:
        AttributeError: if there is no such name.
    """
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in ("plots", "estimators", "kernel", "figures", "mitigations"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
