"""The sum over the steps that AdamW took: each batch's pairs share what the steps did.

A step is Δθ = −η (m̂ / (√v̂ + ε) + λθ): the running means of the batches' gradients and of their
squares. From the recorded steps the model is put to where it was before each of them, the order of
the batches is drawn again as the trainer drew it, and the moments are computed again from the
pairs' gradients. Whether they are what they were is checked against the recorded steps, which do
not enter them. Dropout's masks cannot be drawn again: of a run with dropout the replayed steps have
to be at most half as far from the recorded ones as those of the same pairs in another order.

A pair's gradient enters m̂ in its own step and, ever less, in later ones. With the vectors
q_s = η_s / (1 − β₁ˢ) ∇f(x′) / (√v̂_s + ε) and R_s = q_s + β₁ R_{s+1}, all that pair i of the batch
of step s did is −(1 − β₁)/N ⟨R_s, ∇L_i⟩, N being the batch's tokens with a loss: the steps are run
once forwards, for v̂, and once backwards, for R. Over all pairs that adds up to Σ ⟨∇f, Δθ⟩, apart
from the decay: √v̂ is taken as it was. Of some models (Gemma 3n and 4) the Trainer takes the mean of
the accumulated batches' mean losses instead: there N is their number times the pair's own batch's.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import UserError
from ..measurement.encoding import evaluating
from ..measurement.influence import apply_step, count_steps, read_step, read_steps
from ..measurement.influence.updates import Direction
from ..models.gradients import Gradients
from ..models.parameters import named_parameters
from ..progress import progress as long_stage
from ..storage import write_tensors
from ..training.sft import SFTConfig
from .encoded import Encoded
from .products import PairGradients, inner_products
from .result import Attribution
from .settings import AttributionSettings
from .training_run import OpenedRun, TrainedPair, TrainingRun

AGREEMENT = 0.98
"""The mean cosine of replayed and recorded steps, below which the replay is not believed."""

_OTHER_ORDER = 1_000_003
"""What is added to the seed for batches that were not trained on."""

_OPTIMISERS = ("adamw_torch", "adamw_torch_fused")

_REPLAYED = {
    "label_smoothing_factor": 0.0,
    "neftune_noise_alpha": None,
    "train_sampling_strategy": "random",
    "dataloader_drop_last": False,
}
"""Settings of which another value makes other batches, or another gradient of a batch."""


def over_steps(
    run: TrainingRun,
    opened: OpenedRun,
    encoded: Encoded,
    how: AttributionSettings,
    folder: Path | None = None,
    *,
    progress: bool = False,
) -> Attribution:
    """Return the sum over the recorded steps of a run.

    Args:
        run: a run of `ntkprobe train sft`.
        opened: loads its models.
        encoded: its pairs, and the prompts that are explained.
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
    for name, usual in _REPLAYED.items():
        if (value := getattr(config, name, usual)) != usual:
            raise UserError(
                f"{run.folder} was trained with {name}={value!r}, of which the steps cannot be "
                "computed again: sum over checkpoints"
            )
    if (count := count_steps(place)) != len(rates):
        raise UserError(
            f"{place} holds {count} steps, {run.folder} took {len(rates)}: name the folder of its "
            "own steps (--recorded-steps), or sum over checkpoints"
        )
    first = run.checkpoints()[0]
    with opened.opened(first) as (model, _), evaluating(model):
        known = list(_walk_back(model, place, first.checkpoint.step))
        names = named_parameters(model)
        chosen = {name: names[name] for name in known}
        with TemporaryDirectory() as scales:
            replay = _Replay(chosen, config, rates, Path(scales), not _one_mean(model))
            return _replayed(model, replay, encoded, how, place, progress)


def batches(pairs: int, config: SFTConfig, shift: int = 0) -> Iterator[list[int]]:
    """Yield the rows of each step's batch, as transformers' Trainer draws them in one process.

    A permutation of the data for each epoch, drawn with the seed and the epoch's number.

    Args:
        pairs: how many are trained on.
        config: batch sizes and seed.
        shift: of the seed, for another order.
    """
    size = config.per_device_train_batch_size * config.gradient_accumulation_steps
    seed = config.seed if config.data_seed is None else config.data_seed
    epoch = 0
    while True:
        generator = torch.Generator().manual_seed(seed + shift + epoch)
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
        scales: where √v̂ + ε of every step is kept, as much as the recorded steps are.
        apart: whether each accumulated batch has a mean loss of its own.
        first: m by name.
        second: v by name.
        clips: what each batch's gradient was multiplied by.
    """

    chosen: dict[str, nn.Parameter]
    config: SFTConfig
    rates: tuple[float, ...]
    scales: Path
    apart: bool = False
    first: dict[str, Tensor] = field(default_factory=dict)
    second: dict[str, Tensor] = field(default_factory=dict)
    clips: list[float] = field(default_factory=list)

    def take(self, gradient: dict[str, Tensor]) -> Direction:
        """Take in a batch's gradient.

        Returns:
            The step.
        """
        config, rate = self.config, self.rates[len(self.clips)]
        norm = float(torch.stack([g.double().norm() for g in gradient.values()]).norm())
        limit = config.max_grad_norm
        clip = min(1.0, limit / (norm + 1e-6)) if limit else 1.0
        self.clips.append(clip)
        taken = len(self.clips)
        one, two = config.adam_beta1, config.adam_beta2
        step: Direction = {}
        scales: dict[str, Tensor] = {}
        for name, g in gradient.items():
            m = self.first.get(name, torch.zeros_like(g)) * one + (1 - one) * clip * g
            v = self.second.get(name, torch.zeros_like(g)) * two + (1 - two) * (clip * g).square()
            self.first[name], self.second[name] = m, v
            scales[name] = (v / (1 - two**taken)).sqrt() + config.adam_epsilon
            decay = config.weight_decay * self.chosen[name].detach()
            step[name] = -rate * (m / (1 - one**taken) / scales[name] + decay)
        write_tensors(self.scales / f"{taken}.safetensors", scales)
        return step

    def shares(self, batch: Sequence[int], pairs: Sequence[TrainedPair]) -> dict[int, float]:
        """Return what the summed loss of each pair of a step is multiplied by, by its row."""
        size = self.config.per_device_train_batch_size if self.apart else len(batch)
        parts = [batch[start : start + size] for start in range(0, len(batch), size)]
        learnt = [sum(pairs[row].learnt for row in part) for part in parts]
        both = zip(parts, learnt, strict=True)
        return {row: 1 / (len(parts) * tokens) for part, tokens in both for row in part}

    def momentum(
        self, number: int, held: dict[str, Tensor], later: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Return R of a step, from the gradients of the observed prompts and R of the next one."""
        one, scales = self.config.adam_beta1, load_file(self.scales / f"{number}.safetensors")
        share = self.rates[number - 1] / (1 - one**number)
        own = {name: share * g / scales[name].to(g) for name, g in held.items()}
        return {name: g + one * later[name] if later else g for name, g in own.items()}


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
    """Return what the pairs of every batch did."""
    gradients = PairGradients(model, replay.chosen, encoded.pairs, how.batch_size)
    with long_stage(
        total=2 * len(replay.rates), desc="attributing", unit="step", disable=not progress
    ) as bar:
        rows, agreement = _forwards(model, replay, encoded, gradients, folder, bar)
        values, _ = encoded.observed.held(model, replay.chosen)
        found = _backwards(model, replay, encoded, gradients, folder, rows, bar)
    agreeing = np.where(found.total > 0, found.positive, found.visits - found.positive)
    remarks = [
        f"replayed steps have a mean cosine of {agreement:.4f} with the {len(rows)} recorded",
        *(
            ["the run's dropout is not replayed: its part of the steps is in no pair's change"]
            if replay.config.lora_dropout
            else []
        ),
        *(
            f"prompt {row}: the recorded steps together {steps:+.4g}, all pairs {pairs:+.4g}"
            for row, (steps, pairs) in enumerate(zip(found.whole, found.total.sum(1), strict=True))
        ),
        *encoded.remarks,
    ]
    return Attribution(
        encoded.observed.prompts,
        values.numpy(),
        encoded.frame(),
        found.total,
        np.zeros_like(found.total),
        agreeing / np.maximum(found.visits, 1),
        dict(enumerate(replay.rates[: len(rows)])),
        how.record(),
        tuple(remarks),
    )


def _forwards(
    model: nn.Module,
    replay: _Replay,
    encoded: Encoded,
    gradients: PairGradients,
    folder: Path,
    bar: Any,
) -> tuple[list[list[int]], float]:
    """Take every step, computing the moments again.

    Returns:
        The rows of each step's batch, and the mean cosine of replayed and recorded steps.

    Raises:
        UserError: if the replayed steps are not the recorded ones.
    """
    number, dropout = len(encoded.pairs), bool(replay.config.lora_dropout)
    other = replace(replay, scales=replay.scales / "other", first={}, second={}, clips=[])
    tried = {0: replay, _OTHER_ORDER: other} if dropout else {0: replay}
    orders = {shift: batches(number, replay.config, shift) for shift in tried}
    rows: list[list[int]] = []
    cosines: dict[int, list[float]] = {shift: [] for shift in tried}
    for _, step in read_steps(folder):
        for shift, each in tried.items():
            batch = next(orders[shift])
            shares = each.shares(batch, encoded.pairs)
            gradient = _summed(gradients(batch), each.chosen, shares)
            cosines[shift].append(_cosine(each.take(gradient), step))
            if shift == 0:
                rows.append(batch)
        apply_step(model, step)
        bar.update()
    agreement = float(np.mean(cosines[0]))
    least = (1 + float(np.mean(cosines[_OTHER_ORDER]))) / 2 if dropout else AGREEMENT
    if agreement < least:
        raise UserError(
            f"the steps in {folder} are not those that these pairs make (their mean cosine is "
            f"{agreement:.3f}, and {least:.3f} is needed): several processes, another sampler or "
            "other pairs; sum over checkpoints instead"
        )
    return rows, agreement


@dataclass
class _Sums:
    """Sums over the steps: changes, how often they rose, visits `[n]`, and all steps' `[m]`."""

    total: np.ndarray
    positive: np.ndarray
    visits: np.ndarray
    whole: np.ndarray


def _backwards(
    model: nn.Module,
    replay: _Replay,
    encoded: Encoded,
    gradients: PairGradients,
    folder: Path,
    rows: list[list[int]],
    bar: Any,
) -> _Sums:
    """Take every step back, from the last one.

    Returns:
        What the pairs of their batches did.
    """
    m, n = len(encoded.observed.prompts), len(encoded.pairs)
    sums = _Sums(np.zeros((m, n)), np.zeros((m, n)), np.zeros(n), np.zeros(m))
    later: dict[str, Tensor] = {}
    for number in range(len(rows), 0, -1):
        step = read_step(folder, number)
        apply_step(model, {name: -change for name, change in step.items()})
        _, held = encoded.observed.held(model, replay.chosen)
        sums.whole += [_inner(held, row, step) for row in range(m)]
        later = replay.momentum(number, held, later)
        shares = replay.shares(rows[number - 1], encoded.pairs)
        part = (1 - replay.config.adam_beta1) * replay.clips[number - 1]
        for numbers, found in gradients(rows[number - 1]):
            own = np.array([part * shares[row] for row in numbers])
            change = -own * inner_products(found, later).numpy().T
            sums.total[:, numbers] += change
            sums.positive[:, numbers] += change > 0
            sums.visits[numbers] += 1
        bar.update()
    return sums


def _one_mean(model: Any) -> bool:
    """Return whether the Trainer takes one mean over all of a step's tokens, by its own rule."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    if hasattr(base, "accepts_loss_kwargs"):
        return bool(base.accepts_loss_kwargs)
    taken = signature(base.forward).parameters.values()
    return any(each.kind == each.VAR_KEYWORD for each in taken)


def _summed(
    each: Iterable[tuple[list[int], Gradients]],
    chosen: dict[str, nn.Parameter],
    shares: dict[int, float],
) -> dict[str, Tensor]:
    """Return a batch's gradient: the sum of the pairs' shares of it."""
    found = {name: torch.zeros_like(p, requires_grad=False) for name, p in chosen.items()}
    for rows, gradients in each:
        for name, uses in gradients.items():
            for use in uses:
                whole = use.whole()
                own = torch.tensor([shares[row] for row in rows]).to(whole)
                found[name] += torch.tensordot(own, whole, 1).view_as(found[name])
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
