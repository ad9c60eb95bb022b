"""The same numbers of a real model once more, by transformers, peft and torch alone."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from ntkprobe.checkpoints import LoadSettings, load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.prompts.prompt_set import PromptSet

ANSWER = "I cannot help with that."

Gradients = list[dict[str, Tensor]]


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


def each_gradient(model: Any, values: Sequence[Callable[[], Tensor]], named: str = "") -> Gradients:
    """Return the gradient of each value, by the names of parameters that hold `named`."""
    chosen = {n: p for n, p in model.named_parameters() if named in n}
    before = {n: p.requires_grad for n, p in chosen.items()}
    for parameter in chosen.values():
        parameter.requires_grad_(True)
    each = [torch.autograd.grad(value(), list(chosen.values())) for value in values]
    for name, parameter in chosen.items():
        parameter.requires_grad_(before[name])
    return [dict(zip(chosen, one, strict=True)) for one in each]


def blocks(each: Gradients) -> Tensor:
    """Return all inner products of gradients."""
    rows = [[sum(float((a[n] * b[n]).sum()) for n in a) for b in each] for a in each]
    return torch.tensor(rows, dtype=torch.float64)


@torch.no_grad()
def change_along(
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


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the relative distance of two tensors."""
    gap = (found.double() - expected.double()).norm()
    return float(gap / expected.double().norm())
