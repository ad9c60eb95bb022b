"""The sum over the steps that AdamW took: each batch's pairs share what the batch's step did.

A step is Δθ = −η (m̂ / (√v̂ + ε) + λθ): the running means of the batches' gradients and of their
squares. Given the recorded steps the model is put to where it was before each of them, the order
of the batches is drawn again as the trainer drew it, and the moments are computed again from the
pairs' gradients. A pair's gradient enters m̂ in its own step and, ever less, in later ones. All of
that is credited to it with √v̂ and ∇f(x′) of its own step, −c/N ⟨∇f(x′) / (√v̂ + ε), ∇L_i⟩, N being
the batch's tokens with a loss and c the sum of η times its part of m̂ over these steps. Whether the
moments are what they were is checked against the recorded steps, which do not enter them.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import UserError
from ..measurement.encoding import evaluating
from ..measurement.influence import apply_step, read_steps
from ..measurement.influence.updates import Direction
from ..models.parameters import named_parameters
from ..models.per_sample import Gradients
from ..prompts.prompt_set import PromptSet
from ..training.sft import SFTConfig
from .encoded import Encoded
from .products import PairGradients, inner_products
from .result import Attribution
from .settings import AttributionSettings
from .training_run import OpenedRun, TrainingRun

AGREEMENT = 0.8
"""The mean cosine of replayed and recorded steps, below which the replay is not believed."""

_OPTIMISERS = ("adamw_torch", "adamw_torch_fused")


def over_steps(
    run: TrainingRun,
    opened: OpenedRun,
    asked: PromptSet,
    how: AttributionSettings,
    folder: Path | None = None,
    *,
    progress: bool = False,
) -> Attribution:
    """Return the sum over the recorded steps of a run.

    Args:
        run: a run of `ntkprobe train sft`.
        opened: what loads its models.
        asked: the prompts.
        how: the settings.
        folder: where `StepCallback` recorded the steps; None for `RUN-steps`.
        progress: show a bar on stderr.

    Raises:
        UserError: if the steps are missing, or are others than these pairs make.
    """
    place = folder or run.folder.with_name(f"{run.folder.name}-steps")
    rates, config = run.learning_rates(), run.config
    if not rates or str(getattr(config.optim, "value", config.optim)) not in _OPTIMISERS:
        raise UserError(
            f"{run.folder} is no run of ntkprobe train sft by AdamW, whose steps alone are "
            "replayed: sum over checkpoints"
        )
    first = run.checkpoints()[0]
    encoded = Encoded.of(run, opened, first, asked, how)
    with opened.opened(first) as (model, _), evaluating(model):
        known = list(_walk_back(model, place, first.checkpoint.step))
        names = named_parameters(model)
        replay = _Replay({name: names[name] for name in known}, config, rates)
        return _replayed(model, replay, encoded, how, place, progress)


def batches(pairs: int, config: SFTConfig) -> Iterator[list[int]]:
    """Yield the rows of each step's batch, as transformers' Trainer draws them in one process.

    A permutation of the data for each epoch, drawn with the seed and the epoch's number.

    Args:
        pairs: how many are trained on.
        config: batch sizes and seed.
    """
    size = config.per_device_train_batch_size * config.gradient_accumulation_steps
    seed = config.seed if config.data_seed is None else config.data_seed
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed + epoch)
        order = torch.randperm(pairs, generator=generator).tolist()
        yield from (order[start : start + size] for start in range(0, pairs, size))
        epoch += 1


@dataclass
class _Replay:
    """AdamW's moments, computed again.

    Attributes:
        chosen: θ by name.
        config: the optimiser's settings.
        rates: the learning rate of every step.
        first: m by name.
        second: v by name.
        taken: how many steps.
    """

    chosen: dict[str, nn.Parameter]
    config: SFTConfig
    rates: tuple[float, ...]
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    taken: int = 0

    def take(self, gradient: dict[str, Tensor]) -> tuple[Direction, dict[str, Tensor]]:
        """Take in a batch's gradient.

        Returns:
            The step, and what a pair's part of the gradient is multiplied by, by parameter.
        """
        config, rate = self.config, self.rates[self.taken]
        credit = self._credit(self.taken)
        self.taken += 1
        norm = float(torch.stack([g.double().norm() for g in gradient.values()]).norm())
        limit = config.max_grad_norm
        clip = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        one, two = config.adam_beta1, config.adam_beta2
        step: Direction = {}
        factors: dict[str, Tensor] = {}
        for name, g in gradient.items():
            m = self.first.get(name, torch.zeros_like(g)) * one + (1 - one) * clip * g
            v = self.second.get(name, torch.zeros_like(g)) * two + (1 - two) * (clip * g).square()
            self.first[name], self.second[name] = m, v
            scale = (v / (1 - two**self.taken)).sqrt() + config.adam_epsilon
            decay = config.weight_decay * self.chosen[name].detach()
            step[name] = -rate * (m / (1 - one**self.taken) / scale + decay)
            factors[name] = credit * clip / scale
        return step, factors

    def _credit(self, step: int) -> float:
        """Return Σ η times the part of m̂ that a gradient makes up, over its own and later steps."""
        beta = self.config.adam_beta1
        later = enumerate(self.rates[step:])
        return sum(
            rate * (1 - beta) * beta**lag / (1 - beta ** (step + lag + 1)) for lag, rate in later
        )


def _walk_back(model: nn.Module, folder: Path, steps: int) -> Direction:
    """Put a model from after so many steps to before the first.

    Returns:
        The first step, whose names are those of what is trained.
    """
    first: Direction = {}
    for number, step in read_steps(folder):
        first = first or step
        if number > steps:
            break
        apply_step(model, {name: -change for name, change in step.items()})
    return first


def _replayed(
    model: nn.Module,
    replay: _Replay,
    encoded: Encoded,
    how: AttributionSettings,
    folder: Path,
    progress: bool,
) -> Attribution:
    """Return what the pairs of every batch did.

    Raises:
        UserError: if the replayed steps are not the recorded ones.
    """
    m, n = len(encoded.observed.prompts), len(encoded.pairs)
    total, positive, visits = np.zeros((m, n)), np.zeros((m, n)), np.zeros(n)
    whole, cosines = np.zeros(m), []
    gradients = PairGradients(model, replay.chosen, encoded.pairs, how.batch_size)
    order = batches(n, replay.config)
    steps = tqdm(read_steps(folder), total=len(replay.rates), disable=not progress, unit="step")
    for _, step in steps:
        rows = next(order)
        learnt = sum(encoded.pairs[row].learnt for row in rows)
        each = list(gradients(rows))
        gradient = _summed([g for _, g in each], replay.chosen, learnt)
        made, factors = replay.take(gradient)
        cosines.append(_cosine(made, step))
        _, held = encoded.observed.held(model, replay.chosen)
        scaled = {name: held[name] * factors[name].to(held[name]) / learnt for name in held}
        for numbers, found in each:
            part = -inner_products(found, scaled).numpy().T
            total[:, numbers] += part
            positive[:, numbers] += part > 0
            visits[numbers] += 1
        whole += [_inner(held, row, step) for row in range(m)]
        apply_step(model, step)
    agreement = float(np.mean(cosines))
    if agreement < AGREEMENT:
        raise UserError(
            f"the steps in {folder} are not those that these pairs make (their mean cosine is "
            f"{agreement:.2f}): several processes, another sampler or other pairs; sum over "
            "checkpoints instead"
        )
    values, _ = encoded.observed.held(model, replay.chosen)
    agreeing = np.where(total > 0, positive, visits - positive) / np.maximum(visits, 1)
    remarks = [
        f"replayed steps have a mean cosine of {agreement:.3f} with the {len(cosines)} recorded",
        *(
            f"prompt {row}: all recorded steps together {whole[row]:+.3g}, all pairs "
            f"{total[row].sum():+.3g}"
            for row in range(m)
        ),
        *encoded.remarks,
    ]
    return Attribution(
        encoded.observed.prompts,
        values.numpy(),
        encoded.frame(),
        total,
        np.zeros_like(total),
        agreeing,
        dict(enumerate(replay.rates[: len(cosines)])),
        how.record(),
        tuple(remarks),
    )


def _summed(
    each: list[Gradients], chosen: dict[str, nn.Parameter], learnt: int
) -> dict[str, Tensor]:
    """Return a batch's gradient: the pairs' sum over the number of tokens with a loss."""
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in chosen.items()}
    for gradients in each:
        for name, uses in gradients.items():
            for use in uses:
                found[name] += use.whole().sum(0).view_as(found[name]) / learnt
    return found


def _cosine(made: Direction, step: Direction) -> float:
    """Return the cosine of a replayed and a recorded step; 1 where neither moves anything."""
    pairs = [(made[name].double().flatten(), step[name].double().flatten()) for name in made]
    inner = sum(float(a @ b) for a, b in pairs)
    sizes = [sum(float(t.square().sum()) for t in ts) ** 0.5 for ts in zip(*pairs, strict=True)]
    return inner / (sizes[0] * sizes[1]) if all(sizes) else float(sizes[0] == sizes[1])


def _inner(held: dict[str, Tensor], row: int, step: Direction) -> float:
    """Return ⟨∇f(x′), Δθ⟩ of one prompt."""
    return sum(float((held[n][row].double() * step[n].double()).sum()) for n in held)
