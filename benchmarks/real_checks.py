"""Every kind of number on a real model, each against a calculation that shares no code with it.

`python benchmarks/real_checks.py --model FOLDER_OR_GGUF --prompts FILE [--run RUN]` writes
`real_checks.md`. The other calculation has its own load of the model, by transformers and peft
alone, one unpadded prompt at a time, and torch's autograd or a real step. Both sides are in
float64, whose rounding is far below what is asked. RUN, of `ntkprobe train sft`, adds its adapter
and its attribution.
"""

import argparse
import copy
import math
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from support.tables import machine, table, write
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings
from ntkprobe.checkpoints import LoadSettings, load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.measurement import encode
from ntkprobe.measurement.full_vocabulary import full_vocabulary_norms
from ntkprobe.measurement.influence import predict_step, record_step
from ntkprobe.mitigations import applied
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.models.precision import Float64Throughout
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.prompts.prompt_set import Prompt, PromptSet
from ntkprobe.training.data import Pair

ALLOWED = 1e-6
ANSWER = "I cannot help with that."


@dataclass(frozen=True)
class Checks:
    """What both sides start from: names of files and the same prompts."""

    model: Path
    prompts: PromptSet
    run: Path | None
    opened: ExitStack

    @cached_property
    def ours(self) -> Any:
        """The model as the package loads it."""
        return load_model(str(self.model), LoadSettings(dtype="float64", device="cpu"))

    @cached_property
    def our_tokenizer(self) -> Any:
        """The tokenizer as the package loads it."""
        return load_tokenizer(str(self.model))

    @cached_property
    def theirs(self) -> Any:
        """The model as transformers loads it."""
        where, named = self._named
        found = AutoModelForCausalLM.from_pretrained(
            where, dtype=torch.float32, attn_implementation="eager", local_files_only=True, **named
        )
        return found.double().eval()

    @cached_property
    def their_tokenizer(self) -> Any:
        """The tokenizer as transformers loads it."""
        where, named = self._named
        return AutoTokenizer.from_pretrained(where, local_files_only=True, **named)

    @property
    def _named(self) -> tuple[str, dict[str, str]]:
        if self.model.is_dir():
            return str(self.model), {}
        return str(self.model.parent), {"gguf_file": self.model.name}

    @cached_property
    def ids(self) -> list[Tensor]:
        """The prompts as the tokenizer's own template writes them."""
        turns = [[{"role": "user", "content": prompt.text}] for prompt in self.prompts]
        how: dict[str, Any] = {"add_generation_prompt": True, "return_dict": False}
        return [
            torch.tensor(self.their_tokenizer.apply_chat_template(turn, **how)) for turn in turns
        ]

    @property
    def answer_ids(self) -> list[int]:
        """The answer that pairs have, with the token that ends it."""
        words = self.their_tokenizer
        return [*words(ANSWER, add_special_tokens=False)["input_ids"], words.eos_token_id]

    def logits(self, row: int, model: Any = None, then: tuple[int, ...] = ()) -> Tensor:
        """Return their logits at every position of a prompt and what follows it."""
        ids = torch.cat([self.ids[row], torch.tensor(then, dtype=torch.long)])
        return (self.theirs if model is None else model)(ids[None], use_cache=False).logits[0]

    @cached_property
    def phrases(self) -> list[list[int]]:
        """The tokens of the paper's phrases."""
        words = self.their_tokenizer
        return [words(each, add_special_tokens=False)["input_ids"] for each in PAPER31]

    def log_refusal(self, row: int, model: Any = None) -> Tensor:
        """Return log P(refuse) by a pass for each phrase."""
        terms = []
        for ids in self.phrases:
            logits = self.logits(row, model, tuple(ids[:-1]))[len(self.ids[row]) - 1 :]
            terms.append(logits.log_softmax(-1)[range(len(ids)), ids].sum())
        return torch.stack(terms).logsumexp(0)

    @cached_property
    def our_adapter(self) -> Any:
        """The model with the run's last adapter, not merged, as the package loads it."""
        base, folder = copy.deepcopy(self.ours), Path(self.run or "") / "final"
        return self.opened.enter_context(adapted(base, folder, merge=False))

    @cached_property
    def their_adapter(self) -> Any:
        """The model with the run's last adapter, as peft loads it."""
        base, folder = copy.deepcopy(self.theirs), Path(self.run or "") / "final"
        found = PeftModel.from_pretrained(base, folder, is_trainable=True)
        return found.double().eval()

    def stepped(self, size: float) -> Any:
        """Return a copy of their model after a step of descent on the pair (prompt 0, ANSWER)."""
        moved = copy.deepcopy(self.theirs)
        self.pair_loss(moved).backward()
        with torch.no_grad():
            for parameter in moved.parameters():
                parameter -= size * parameter.grad
        return moved

    def pair_loss(self, model: Any) -> Tensor:
        """Return the summed loss of the pair."""
        ids = torch.cat([self.ids[0], torch.tensor(self.answer_ids)])[None]
        labels = ids.clone()
        labels[:, : len(self.ids[0])] = -100
        return model(input_ids=ids, labels=labels, use_cache=False).loss * len(self.answer_ids)


Found = tuple[float, str]
"""An error, relative unless it says otherwise, and what was compared."""
Gradients = list[dict[str, Tensor]]


def tokens(checks: Checks) -> Found:
    """Prompts become tokens as the tokenizer's own template writes them."""
    encoded = encode(checks.our_tokenizer, checks.prompts).input_ids
    same = [torch.equal(torch.tensor(a), b) for a, b in zip(encoded, checks.ids, strict=True)]
    return float(not all(same)), f"{len(same)} prompts; 1 if any differs"


def kernel(checks: Checks) -> Found:
    """Blocks of the top token and the padding token, from explicit gradients."""
    read = _read(checks)
    found = _measured(checks, checks.ours, read, keep_blocks=True).blocks
    expected = _blocks(_gradients(checks, checks.theirs, read))
    return _apart(found.flatten(2).flatten(0, 1), expected), "all weights, 2 prompts, 2 tokens"


def kernel_by_layer(checks: Checks) -> Found:
    """The norm of every layer's share, from explicit gradients of that layer alone."""
    read = _read(checks)
    parts = _measured(checks, checks.ours, read, by="layer").parts
    each = _gradients(checks, checks.theirs, read)
    gaps = []
    for layer in (1, 2):
        some = [{n: g for n, g in one.items() if f".layers.{layer - 1}." in n} for one in each]
        blocks = _blocks(some).unflatten(0, read.shape).unflatten(2, read.shape)
        rows = parts[(parts["layer"] == str(layer)) & (parts["part"] == "all")]
        rows = rows.sort_values(["observed", "updated"])
        found = torch.tensor(rows["norm"].to_numpy()).view(len(read), -1)
        gaps.append(_apart(found, torch.linalg.matrix_norm(blocks.transpose(1, 2))))
    return max(gaps), "layers 1 and 2"


def kernel_of_an_adapter(checks: Checks) -> Found:
    """Blocks over LoRA's matrices, not merged, from explicit gradients."""
    read = _read(checks)
    found = _measured(checks, checks.our_adapter, read, parameters="lora", keep_blocks=True).blocks
    expected = _blocks(_gradients(checks, checks.their_adapter, read, "lora_"))
    return _apart(found.flatten(2).flatten(0, 1), expected), "2 prompts, 2 tokens"


def whole_vocabulary(checks: Checks) -> Found:
    """‖K‖² over all logits is the mean of ‖K ω‖² over random signs ω."""
    found = float(full_vocabulary_norms(checks.ours, checks.ids[:2])[0, 1]) ** 2
    generator, draws = torch.Generator().manual_seed(0), []
    for _ in range(16):
        signs = 2.0 * torch.randint(0, 2, checks.logits(1)[-1].shape, generator=generator) - 1
        (step,) = _each_gradient(checks.theirs, [lambda s=signs: checks.logits(1)[-1] @ s.double()])
        size = 1e-6 / math.sqrt(sum(float(g.square().sum()) for g in step.values()))
        moved = _along(checks.theirs, step, size, lambda: checks.logits(0)[-1])
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
    return _apart(found, expected), f"{len(found)} prompts"


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
        gaps.append(_apart(found[layer].double(), expected))
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
    step, *others = _each_gradient(model, values, chosen)
    (weight,) = found.weights.values()  # type: ignore[union-attr]
    products = [sum(float((g * step[n]).sum()) for n, g in one.items()) for one in others]
    changes = torch.as_tensor(found.changes).double()[:, 0]  # type: ignore[union-attr]
    return _apart(
        changes, -weight * torch.tensor(products).double()
    ), "the run's adapter, 2 prompts"


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
    along = {
        n: p.detach() - before[n].detach() for n, p in moved.named_parameters() if "lora_" in n
    }
    expected = _along(
        model,
        along,
        1e-4,
        lambda: torch.stack([checks.log_refusal(row, model) for row in (1, 2)]),
    )
    return _apart(found, expected), "the run's adapter, 2 prompts"


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
    every = PromptSet.from_file(given.prompts)
    some = every.take(list(range(0, len(every), max(1, len(every) // 4)))[:4])
    checks = Checks(given.model, some, given.run, ExitStack())
    rows, wrong = [], []
    for check in CHECKS + (OF_A_RUN if given.run else ()):
        if given.only not in (None, check.__name__):
            continue
        # Files are read before: the mode would change their bytes, too.
        _ = (
            checks.ours,
            checks.theirs,
            check in OF_A_RUN and (checks.our_adapter, checks.their_adapter),
        )
        with Float64Throughout():
            error, compared = check(checks)
        allowed = LOOSER.get(check, ALLOWED)
        wrong += [] if error <= allowed else [check.__name__]
        title = (check.__doc__ or "").replace("\n    ", " ")
        rows.append([check.__name__.replace("_", " "), title, compared, f"{error:.1e}", allowed])
        print(rows[-1], flush=True)
    if given.only is None:
        header = ["", "what, and what it is compared with", "compared", "error", "allowed"]
        about = f"{given.model.name}, float64; {machine()}; by `python benchmarks/real_checks.py`."
        title = "# Every kind of number on a real model, against an independent calculation"
        print(write(__file__, title, about, table(header, rows)))
    raise SystemExit(f"wrong: {', '.join(wrong)}" if wrong else 0)


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
    return _each_gradient(model, values, named)


def _each_gradient(
    model: Any, values: Sequence[Callable[[], Tensor]], named: str = ""
) -> Gradients:
    """Return the gradient of each value, by the names of parameters that hold `named`."""
    chosen = {n: p for n, p in model.named_parameters() if named in n}
    before = {n: p.requires_grad for n, p in chosen.items()}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    each = [torch.autograd.grad(value(), list(chosen.values())) for value in values]
    for name, parameter in chosen.items():
        parameter.requires_grad_(before[name])
    return [dict(zip(chosen, one, strict=True)) for one in each]


def _blocks(each: Gradients) -> Tensor:
    """Return all inner products of gradients."""
    rows = [[sum(float((a[n] * b[n]).sum()) for n in a) for b in each] for a in each]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def _along(
    model: Any, direction: dict[str, Tensor], size: float, read: Callable[[], Tensor]
) -> Tensor:
    """Return what `read` changes by along a direction, by central differences."""
    chosen = [(p, direction[n]) for n, p in model.named_parameters() if n in direction]
    kept, sides = [p.clone() for p, _ in chosen], []
    for sign in (1, -1):
        for (parameter, step), at in zip(chosen, kept, strict=True):
            parameter.copy_(at + sign * size * step)
        sides.append(read())
    for (parameter, _), at in zip(chosen, kept, strict=True):
        parameter.copy_(at)
    return (sides[0] - sides[1]) / (2 * size)


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
    return _apart(found, (sides[0] - sides[1]) / (2 * size)), "all weights, 2 prompts"


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
    return _apart(found, torch.stack(terms).logsumexp(0)[None]), "1 prompt"


def _apart(found: Tensor, expected: Tensor) -> float:
    """Return the relative distance of two tensors."""
    gap = (found.double() - expected.double()).norm()
    return float(gap / expected.double().norm())


if __name__ == "__main__":
    main()
