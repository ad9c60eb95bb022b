"""Measure each complete checkpoint of a run once, while it trains or afterwards."""

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
