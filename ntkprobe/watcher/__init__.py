"""Measure each complete checkpoint of a run once, while it trains or afterwards."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .choices import Choice as Choice
    from .choices import Following as Following
    from .choices import parse_shard as parse_shard
    from .choices import parse_steps as parse_steps
    from .folder import MeasurementFolder as MeasurementFolder
    from .outcome import Outcome as Outcome
    from .run import measure_run as measure_run
    from .run import plan as plan
    from .settings import ActivationSettings as ActivationSettings
    from .settings import InfluenceSettings as InfluenceSettings
    from .settings import KernelSettings as KernelSettings
    from .settings import MeasureSettings as MeasureSettings
    from .settings import RefusalSettings as RefusalSettings

_HOMES = {
    "ActivationSettings": "settings",
    "Choice": "choices",
    "Following": "choices",
    "InfluenceSettings": "settings",
    "KernelSettings": "settings",
    "MeasureSettings": "settings",
    "MeasurementFolder": "folder",
    "Outcome": "outcome",
    "RefusalSettings": "settings",
    "measure_run": "run",
    "parse_shard": "choices",
    "parse_steps": "choices",
    "plan": "run",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Return a public name, imported now, so that `settings` alone loads no torch (PEP 562).

    Raises:
        AttributeError: if there is no such name.
    """
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
