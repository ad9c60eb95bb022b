"""Shows why a language model starts to refuse: the eNTK between prompts, and refusal probability.

Every name here is imported when it is first used, so that `import ntkprobe` does not load torch.
"""

import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import moved_modules
from . import openmp as openmp  # before torch, which reads the policy when it is loaded

__version__ = "0.1.0"

moved_modules.install()

if TYPE_CHECKING:
    from .attribution import Attribution as Attribution
    from .attribution import attribute as attribute
    from .errors import UserError as UserError
    from .estimators.gram import Gram as Gram
    from .kernel import Probe as Probe
    from .measurement import ActivationMeasurement as ActivationMeasurement
    from .measurement import KernelMeasurement as KernelMeasurement
    from .measurement import RefusalMeasurement as RefusalMeasurement
    from .measurement import measure_activations as measure_activations
    from .measurement import measure_between as measure_between
    from .measurement import measure_kernel as measure_kernel
    from .measurement import measure_refusal as measure_refusal
    from .measurement.directions import measure_directions as measure_directions
    from .measurement.influence import Influence as Influence
    from .measurement.influence import influence as influence
    from .measurement.proposition1 import BoundMeasurement as BoundMeasurement
    from .measurement.proposition1 import measure_bounds as measure_bounds
    from .measurement.verification import verify as verify
    from .prompts import Prompt as Prompt
    from .prompts import PromptSet as PromptSet
    from .stages import Stage as Stage
    from .training.callbacks import StepCallback as StepCallback
    from .training.dcr import DCRConfig as DCRConfig
    from .training.dcr import DCRTrainer as DCRTrainer
    from .training.dcr import train_dcr as train_dcr
    from .training.sft import SFTConfig as SFTConfig
    from .training.sft import train_sft as train_sft
    from .trajectory import Trajectory as Trajectory
    from .watcher import measure_run as measure_run
    from .watcher import measure_stages as measure_stages
    from .watcher.callback import TrajectoryCallback as TrajectoryCallback

_HOMES = {
    "ActivationMeasurement": "measurement",
    "Attribution": "attribution",
    "BoundMeasurement": "measurement.proposition1",
    "DCRConfig": "training.dcr",
    "DCRTrainer": "training.dcr",
    "Gram": "estimators.gram",
    "Influence": "measurement.influence",
    "KernelMeasurement": "measurement",
    "Probe": "kernel",
    "Prompt": "prompts",
    "PromptSet": "prompts",
    "RefusalMeasurement": "measurement",
    "SFTConfig": "training.sft",
    "Stage": "stages",
    "StepCallback": "training.callbacks",
    "Trajectory": "trajectory",
    "TrajectoryCallback": "watcher.callback",
    "UserError": "errors",
    "attribute": "attribution",
    "influence": "measurement.influence",
    "measure_activations": "measurement",
    "measure_between": "measurement",
    "measure_bounds": "measurement.proposition1",
    "measure_directions": "measurement.directions",
    "measure_kernel": "measurement",
    "measure_refusal": "measurement",
    "measure_run": "watcher",
    "measure_stages": "watcher",
    "train_dcr": "training.dcr",
    "train_sft": "training.sft",
    "verify": "measurement.verification",
}
_MOVED = {
    "apply_step": "measurement.influence",
    "full_vocabulary_norms": "measurement.full_vocabulary",
    "predict_step": "measurement.influence",
    "random_probe_norms": "measurement.random_probes",
    "read_steps": "measurement.influence",
    "record_step": "measurement.influence",
}
__all__ = sorted([*_HOMES, "__version__"])


def __getattr__(name: str) -> Any:
    """Return a public name or a submodule, imported now (PEP 562).

    Raises:
        AttributeError: if there is no such name.
    """
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    if name in _MOVED:
        home = f"{__name__}.{_MOVED[name]}"
        message = f"ntkprobe.{name} has moved: from {home} import {name}"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(import_module(home), name)
    if name in ("plots", "estimators", "kernel", "figures", "mitigations"):
        return import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the public names."""
    return __all__
