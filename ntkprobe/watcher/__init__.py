"""Measure each complete checkpoint of a run once, while it trains or afterwards."""

from typing import TYPE_CHECKING

from ..lazy_imports import names_of

if TYPE_CHECKING:
    from .choices import Choice as Choice
    from .choices import Following as Following
    from .choices import parse_shard as parse_shard
    from .choices import parse_steps as parse_steps
    from .folder import MeasurementFolder as MeasurementFolder
    from .planning import plan as plan
    from .reporting import Outcome as Outcome
    from .run import measure_run as measure_run
    from .settings import ActivationSettings as ActivationSettings
    from .settings import DirectionSettings as DirectionSettings
    from .settings import InfluenceSettings as InfluenceSettings
    from .settings import KernelSettings as KernelSettings
    from .settings import MeasureSettings as MeasureSettings
    from .settings import RefusalSettings as RefusalSettings
    from .stage_planning import plan_stages as plan_stages
    from .stage_run import measure_stages as measure_stages

_HOMES = {
    "ActivationSettings": "settings",
    "Choice": "choices",
    "DirectionSettings": "settings",
    "Following": "choices",
    "InfluenceSettings": "settings",
    "KernelSettings": "settings",
    "MeasureSettings": "settings",
    "MeasurementFolder": "folder",
    "Outcome": "reporting",
    "RefusalSettings": "settings",
    "measure_run": "run",
    "measure_stages": "stage_run",
    "parse_shard": "choices",
    "parse_steps": "choices",
    "plan": "planning",
    "plan_stages": "stage_planning",
}
__all__ = sorted(_HOMES)


__getattr__ = names_of(__name__, _HOMES)
