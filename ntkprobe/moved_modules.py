"""Modules by the names that they had before: imported from their new places, with a warning."""

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "answer_start": "prompts.answer_start",
    "attribution.blocks": "attribution.pair_blocks",
    "attribution.refused_prompts": "attribution.observed",
    "backward": "models.gradients",
    "batching": "models.batching",
    "bounds": "measurement.proposition1",
    "chat": "prompts.templates",
    "checkpoints.fingerprints": "checkpoints.identification",
    "checks": "models.validation",
    "cli._signature": "cli._options",
    "direction_measurement": "directions.measurement",
    "estimators.gram.operation_recorder": "estimators.gram.gradient_rules",
    "estimators.gram.precision": "models.precision",
    "estimators.gram.remembered_checks": "estimators.gram.rule_check",
    "estimators.gram.row_layout": "estimators.gram.factors",
    "evaluation.benchmarks.benchmark_prompts": "evaluation.benchmarks.sources",
    "evaluation.benchmarks.contrasts": "evaluation.benchmarks.catalogue",
    "evaluation.benchmarks.own_files": "evaluation.benchmarks.sources",
    "evaluation.judges.wildguard_format": "evaluation.judges.wildguard",
    "evaluation.panel": "evaluation.judge_specs",
    "evaluation.verdict_files": "evaluation.judging",
    "generation": "models.generation",
    "hooks": "models.architecture",
    "influences": "measurement.influence",
    "intervals": "statistics",
    "logits": "models.logits",
    "losses": "training.losses",
    "measurement.influence.pair_files": "measurement.influence.examples",
    "measurement.proposition1.features": "measurement.proposition1.factors",
    "measurement.proposition1.tail": "measurement.proposition1.factors",
    "mitigations._draft": "mitigations.ssd",
    "mitigations._expert": "mitigations.lora_expert",
    "mitigations._interface": "mitigations.base",
    "mitigations._storage": "mitigations.storage",
    "mitigations.draft_model": "mitigations.ssd",
    "mitigations.settings": "mitigations.base",
    "models.answer_ends": "models.answers",
    "models.backward": "models.gradients",
    "models.greedy": "models.answers",
    "models.per_sample": "models.gradients",
    "models.prompt_validation": "models.validation",
    "parameters": "models.parameters",
    "phrases": "prompts.phrases",
    "plots.distributions": "plots.bars",
    "plots.dots": "plots.bars",
    "plots.grids": "plots.heatmap",
    "plots.paths": "plots.points",
    "plots.profiles": "plots.lines",
    "plots.ranked": "plots.bars",
    "plots.trajectories": "plots.lines",
    "prompt_files": "prompts.files",
    "prompts.columns": "prompts.files",
    "prompts.phrase_files": "prompts.phrases",
    "prompts.template_files": "prompts.rendering",
    "prompts.vocabulary": "prompts.special_tokens",
    "provenance": "storage",
    "random_probes": "measurement.random_probes",
    "rendering": "prompts.rendering",
    "report.following": "report.page",
    "report.ordering": "report.contents",
    "report.settings": "report.cautions",
    "server": "evaluation.server",
    "special_tokens": "prompts.special_tokens",
    "tiny.tokenizer": "tiny.pretrain",
    "training.accumulation": "training.features",
    "training.dcr_config": "training.config",
    "training.guards": "training.contamination",
    "training.sampler": "training.contrast_data",
    "training.steps": "training.callbacks",
    "triggers.extractors.word_lists": "triggers.extractors.rule",
    "triggers.progress": "triggers.extraction",
    "verification": "measurement.verification",
    "vocabulary": "measurement.full_vocabulary",
    "watcher.cluster": "watcher.ray_cluster",
}
"""Old name: new name, both within the package."""
_PACKAGE = __package__ or "ntkprobe"


class MovedModules(MetaPathFinder, Loader):
    """Finds a module by its old name."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return a specification for an old name; None for any other."""
        known = fullname.removeprefix(f"{_PACKAGE}.") in MOVED
        return ModuleSpec(fullname, self) if known and fullname.startswith(_PACKAGE) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """Return the module at its new place."""
        new = f"{_PACKAGE}.{MOVED[spec.name.removeprefix(f'{_PACKAGE}.')]}"
        warnings.warn(f"{spec.name} has moved: import {new}", DeprecationWarning, stacklevel=2)
        module = import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Leave the module as it is; its own specification is put back."""
        module.__spec__ = getattr(module.__spec__, "loader_state", module.__spec__)


def install() -> None:
    """Let old names be found, after everything else was tried."""
    if not any(isinstance(finder, MovedModules) for finder in sys.meta_path):
        sys.meta_path.append(MovedModules())
