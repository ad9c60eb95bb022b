"""Every kind of number on a real model, each against a calculation that shares no code with it.

`python benchmarks/real_checks.py --model FOLDER_OR_GGUF --prompts FILE [--run RUN]` writes
`real_checks.md` and, as they come, `real_checks.csv`; `--only` repeats one. The other calculation
(`support/real_references.py`) has its own load of the model, by transformers and peft alone, one
unpadded prompt at a time, and torch's autograd or a real step. Both sides are in float64, whose
rounding is far below what is asked. RUN, of `ntkprobe train sft`, adds its adapter and its
attribution.
"""

import argparse
import copy
import csv
import math
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from support.real_references import (
    ANSWER,
    Checks,
    Gradients,
    apart,
    blocks,
    change_along,
    each_gradient,
)
from support.tables import machine, table, write
from torch import Tensor, nn

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings
from ntkprobe.checkpoints import LoadSettings
from ntkprobe.measurement import encode
from ntkprobe.measurement.full_vocabulary import full_vocabulary_norms
from ntkprobe.measurement.influence import predict_step, record_step
from ntkprobe.mitigations import applied
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.prompts.prompt_set import Prompt, PromptSet
from ntkprobe.training.data import Pair

ALLOWED = 1e-6
NUMBERS = Path(__file__).with_suffix(".csv")

Found = tuple[float, str]
"""An error, relative unless it says otherwise, and what was compared."""


def tokens(checks: Checks) -> Found:
    """Prompts become tokens as the tokenizer's own template writes them."""
    encoded = encode(checks.our_tokenizer, checks.prompts).input_ids
    same = [torch.equal(torch.tensor(a), b) for a, b in zip(encoded, checks.ids, strict=True)]
    return float(not all(same)), f"{len(same)} prompts; 1 if any differs"


def kernel(checks: Checks) -> Found:
    """Blocks of the top token and the padding token, from explicit gradients."""
    read = _read(checks)
    found = _measured(checks, checks.ours, read, keep_blocks=True).blocks
    expected = blocks(_gradients(checks, checks.theirs, read))
    return apart(found.flatten(2).flatten(0, 1), expected), "all weights, 2 prompts, 2 tokens"


def kernel_by_layer(checks: Checks) -> Found:
    """Norms of the shares of single parts, from explicit gradients of these alone."""
    read = _read(checks)
    parts = _measured(checks, checks.ours, read, by="layer").parts
    each = _gradients(checks, checks.theirs, read)
    gaps = []
    for layer, part, named in (
        (1, "attention", ".layers.0.self_attn."),
        (2, "mlp", ".layers.1.mlp."),
    ):
        some = [{n: g for n, g in one.items() if named in n} for one in each]
        shares = blocks(some).unflatten(0, read.shape).unflatten(2, read.shape)
        rows = parts[(parts["layer"] == layer) & (parts["part"] == part)]
        rows = rows.sort_values(["observed", "updated"])
        found = torch.tensor(rows["norm"].to_numpy()).view(len(read), -1)
        gaps.append(apart(found, torch.linalg.matrix_norm(shares.transpose(1, 2))))
    return max(gaps), "attention of layer 1, MLP of layer 2"


def kernel_of_an_adapter(checks: Checks) -> Found:
    """Blocks over LoRA's matrices, not merged, from explicit gradients."""
    read = _read(checks)
    found = _measured(checks, checks.our_adapter, read, parameters="lora", keep_blocks=True).blocks
    expected = blocks(_gradients(checks, checks.their_adapter, read, "lora_"))
    return apart(found.flatten(2).flatten(0, 1), expected), "2 prompts, 2 tokens"


def whole_vocabulary(checks: Checks) -> Found:
    """‖K‖² over all logits is the mean of ‖K ω‖² over random signs ω."""
    found = float(full_vocabulary_norms(checks.ours, checks.ids[:2])[0, 1]) ** 2
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(16):
        signs = 2.0 * torch.randint(0, 2, checks.logits(1)[-1].shape, generator=generator) - 1
        (step,) = each_gradient(checks.theirs, [lambda s=signs: checks.logits(1)[-1] @ s.double()])
        size = 1e-6 / math.sqrt(sum(float(g.square().sum()) for g in step.values()))
        moved = change_along(checks.theirs, step, size, lambda: checks.logits(0)[-1])
        draws.append(float(moved.square().sum()))
    values = torch.tensor(draws)
    return float((values.mean() - found).abs() / (values.std() / 4)), "standard errors of 16 draws"


def refusals(checks: Checks) -> Found:
    """Log P(refuse), from a pass for each of the 31 phrases."""
    found = ntk.measure_refusal(
        checks.ours, checks.our_tokenizer, checks.prompts, generate=False, exact_phrases=True
    ).log_probabilities["paper31", "literal"]
    with torch.no_grad():
        expected = torch.stack([checks.log_refusal(row) for row in range(len(checks.ids))])
    return apart(found, expected), f"{len(found)} prompts"


def answers(checks: Checks) -> Found:
    """Greedy answers, from `generate` on one prompt at a time."""
    found = ntk.measure_refusal(
        checks.ours, checks.our_tokenizer, checks.prompts, max_new_tokens=12
    ).answers
    different = 0
    for ids, text in zip(checks.ids, found or (), strict=True):
        how = {"attention_mask": torch.ones(1, len(ids)), "pad_token_id": 0, "max_new_tokens": 12}
        made = checks.theirs.generate(ids[None], do_sample=False, **how)[0, len(ids) :]
        different += checks.their_tokenizer.decode(made, skip_special_tokens=True) != text
    return float(different), f"{len(checks.ids)} answers; how many differ"


def activations(checks: Checks) -> Found:
    """The outputs of two blocks, from transformers' hidden states."""
    found = ntk.measure_activations(
        checks.ours, checks.our_tokenizer, checks.prompts, layers=[1, 2]
    ).layers
    with torch.no_grad():
        each = [checks.theirs(ids[None], output_hidden_states=True) for ids in checks.ids]
    gaps = []
    for layer in (1, 2):
        expected = torch.stack([states.hidden_states[layer][0, -1] for states in each])
        gaps.append(apart(found[layer].double(), expected))
    return max(gaps), f"{len(each)} prompts"


def influence_forward(checks: Checks) -> Found:
    """What a step on a pair does to log P(refuse) of others, from real steps to both sides."""
    return _influence(checks, "forward")


def influence_reverse(checks: Checks) -> Found:
    """The same, by backward passes."""
    return _influence(checks, "reverse")


def attribution(checks: Checks) -> Found:
    """The change that one pair's step makes to log P(refuse), from explicit gradients."""
    pair = Pair(checks.prompts[0].text, ANSWER)
    how = AttributionSettings(over="final", load=LoadSettings(dtype="float64", device="cpu"))
    found = ntk.attribute(
        str(checks.run),
        prompts=checks.prompts.take([1, 2]),
        candidates=[pair],
        settings=how,
        model=str(checks.model),
    )
    model, chosen = checks.their_adapter, "lora_"
    values = [lambda: checks.pair_loss(model)]
    values += [lambda row=row: checks.log_refusal(row, model) for row in (1, 2)]
    step, *others = each_gradient(model, values, chosen)
    (weight,) = found.weights.values()  # type: ignore[union-attr]
    products = [sum(float((g * step[n]).sum()) for n, g in one.items()) for one in others]
    changes = torch.as_tensor(found.changes).double()[:, 0]  # type: ignore[union-attr]
    return apart(changes, -weight * torch.tensor(products).double()), "the run's adapter, 2 prompts"


def optimisers_step(checks: Checks) -> Found:
    """What a recorded AdamW step does to first order, from moving a copy along it."""
    moved = copy.deepcopy(checks.their_adapter)
    trained = [p for p in moved.parameters() if p.requires_grad]
    checks.pair_loss(moved).backward()
    with record_step(moved) as step:
        torch.optim.AdamW(trained, lr=1e-3, weight_decay=0.1).step()
    some = checks.prompts.take([1, 2])
    found = predict_step(
        checks.our_adapter, checks.our_tokenizer, observed=some, step=step, phrases="paper31"
    ).refusal
    model = checks.their_adapter
    before = dict(model.named_parameters())
    taken = {
        n: p.detach() - before[n].detach() for n, p in moved.named_parameters() if "lora_" in n
    }
    expected = change_along(
        model,
        taken,
        1e-4,
        lambda: torch.stack([checks.log_refusal(row, model) for row in (1, 2)]),
    )
    return apart(found, expected), "the run's adapter, 2 prompts"


def self_cd(checks: Checks) -> Found:
    """P(refuse) under SelfCD, from passes with and without its system message."""
    return _decoded(checks, SelfCd())


def adacd(checks: Checks) -> Found:
    """P(refuse) under AdaCD, from passes with and without its system message."""
    return _decoded(checks, Adacd())


CHECKS: tuple[Callable[[Checks], Found], ...] = (
    tokens,
    kernel,
    kernel_by_layer,
    whole_vocabulary,
    refusals,
    answers,
    activations,
    influence_forward,
    influence_reverse,
    self_cd,
    adacd,
)
OF_A_RUN: tuple[Callable[[Checks], Found], ...] = (
    kernel_of_an_adapter,
    optimisers_step,
    attribution,
)
LOOSER = {whole_vocabulary: 3.0, influence_forward: 1e-5, influence_reverse: 1e-5}
"""What is allowed where the other side is no exact number: draws, differences."""


def main() -> None:
    """Compare, and write the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--prompts", required=True)
    parser.add_argument("--run", type=Path)
    parser.add_argument("--only", help="the name of one check")
    given = parser.parse_args()
    prompts = PromptSet.from_file(given.prompts)
    some = prompts.take(list(range(0, len(prompts), max(1, len(prompts) // 4)))[:4])
    checks = Checks(given.model, some, given.run, ExitStack())
    known = _known()
    for check in CHECKS + (OF_A_RUN if given.run else ()):
        if given.only not in (None, check.__name__):
            continue
        # Files are read before: the mode would change their bytes, too.
        _ = checks.ours, checks.theirs
        _ = check in OF_A_RUN and (checks.our_adapter, checks.their_adapter)
        with Float64Throughout():
            error, compared = check(checks)
        known[check.__name__] = (error, compared)
        with NUMBERS.open("w", newline="") as file:
            csv.writer(file).writerows(
                [name, f"{e:.3e}", what] for name, (e, what) in known.items()
            )
        print(check.__name__, f"{error:.1e}", compared, flush=True)
    header = ["", "what, and what it is compared with", "compared", "error", "allowed"]
    about = f"{given.model.name}, float64; {machine()}; by `python benchmarks/real_checks.py`."
    title = "# Every kind of number on a real model, against an independent calculation"
    every = [check for check in CHECKS + OF_A_RUN if check.__name__ in known]
    rows = [_row(check, *known[check.__name__]) for check in every]
    print(write(__file__, title, about, table(header, rows)))
    wrong = [check.__name__ for check in every if not known[check.__name__][0] <= _allowed(check)]
    raise SystemExit(f"wrong: {', '.join(wrong)}" if wrong else 0)


def _known() -> dict[str, Found]:
    """Return the errors that were found before, by the name of the check."""
    if not NUMBERS.is_file():
        return {}
    with NUMBERS.open(newline="") as file:
        return {name: (float(error), compared) for name, error, compared in csv.reader(file)}


def _allowed(check: Callable[[Checks], Found]) -> float:
    """Return the error that a check allows."""
    return LOOSER.get(check, ALLOWED)


def _row(check: Callable[[Checks], Found], error: float, compared: str) -> list[str]:
    """Return the row of a check in the table."""
    what = (check.__doc__ or "").replace("\n    ", " ")
    name = check.__name__.replace("_", " ")
    return [name, what, compared, f"{error:.1e}", f"{_allowed(check):g}"]


def _read(checks: Checks) -> Tensor:
    """Return the tokens read of each of 2 prompts: the top one, and the padding token."""
    padding = checks.their_tokenizer.pad_token_id or 0
    with torch.no_grad():
        tops = [int(checks.logits(row)[-1].argmax()) for row in range(2)]
    return torch.tensor([[top, padding] for top in tops])


def _measured(checks: Checks, model: nn.Module, read: Tensor, **how: Any) -> Any:
    some = checks.prompts.take([0, 1])
    return ntk.measure_kernel(model, checks.our_tokenizer, some, tokens=read, **how)


def _gradients(checks: Checks, model: Any, read: Tensor, named: str = "") -> Gradients:
    """Return ∂z/∂θ of every token read of every prompt."""
    values = [
        lambda row=row, token=token: checks.logits(row, model)[-1, token]
        for row, some in enumerate(read.tolist())
        for token in some
    ]
    return each_gradient(model, values, named)


def _influence(checks: Checks, mode: str) -> Found:
    first = checks.prompts[0]
    found = ntk.influence(
        checks.ours,
        checks.our_tokenizer,
        observed=checks.prompts.take([1, 2]),
        updated=PromptSet((Prompt(first.text, first.group, response=ANSWER),)),
        tokens=None,
        mode=mode,
    ).refusal[0]
    size, sides = 1e-7, []
    for sign in (1, -1):
        moved = checks.stepped(sign * size)
        with torch.no_grad():
            sides.append(torch.stack([checks.log_refusal(row, moved) for row in (1, 2)]))
    return apart(found, (sides[0] - sides[1]) / (2 * size)), "all weights, 2 prompts"


@torch.no_grad()
def _decoded(checks: Checks, method: Any) -> Found:
    """Return by how much log P(refuse) of one prompt under a decoding method is off."""
    one = checks.prompts.take([0])
    with applied(method, checks.ours, checks.our_tokenizer) as processors:
        found = ntk.measure_refusal(
            checks.ours, checks.our_tokenizer, one, generate=False, logits_processor=processors
        ).log_probabilities["paper31", "literal"]
    turns = [{"role": "system", "content": method.system}, {"role": "user", "content": one[0].text}]
    prompted = torch.tensor(
        checks.their_tokenizer.apply_chat_template(
            turns, add_generation_prompt=True, return_dict=False
        )
    )
    terms = []
    for phrase in checks.phrases:
        then = torch.tensor(phrase[:-1], dtype=torch.long)
        z, z_s = (
            checks.theirs(torch.cat([ids, then])[None]).logits[0, len(ids) - 1 :]
            for ids in (checks.ids[0], prompted)
        )
        changed = torch.arange(len(phrase)) < getattr(method, "steps", math.inf)
        mixed = torch.where(changed[:, None], method.combine(z, z_s), z)
        terms.append(mixed.log_softmax(-1)[range(len(phrase)), phrase].sum())
    return apart(found, torch.stack(terms).logsumexp(0)[None]), "1 prompt"


if __name__ == "__main__":
    main()
