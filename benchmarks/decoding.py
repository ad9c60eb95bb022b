"""What decoding methods cost beside plain generation, per token: AdaCD's first k tokens, and after.

`python benchmarks/decoding.py` writes `decoding.md`; minutes on one core. Plain generation and all
methods answer the same prompts in turn, several times over, on one thread and in batches without an
end token; the ratios are medians over these rounds, each of two generations of the same round, of
processor time, which other programs on the machine disturb less than the clock.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import process_time
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from support.models import Shape
from support.tables import machine, table, write
from torch import Tensor
from tqdm import tqdm
from transformers import LogitsProcessor, LogitsProcessorList

from ntkprobe.checkpoints import load_tokenizer
from ntkprobe.mitigations import Decoding, applied
from ntkprobe.mitigations.adacd import Adacd
from ntkprobe.mitigations.prompt import Prompt
from ntkprobe.mitigations.safe_decoding import SafeDecoding
from ntkprobe.mitigations.self_cd import SelfCd
from ntkprobe.mitigations.ssd import Ssd
from ntkprobe.models.generation import left_padded
from ntkprobe.prompts.prompt_set import PromptSet
from ntkprobe.prompts.templates import resolve_template
from ntkprobe.tiny.files import measure_path, model_path

TOKENS = 128
FEWER = 32  # for the methods that cost the same for every token
REPEATS = 3
Spans = tuple[float, float, float]
DRAFT = Shape(128, 4, 8000)
CASES = [
    ("one prompt at a time", Shape(512, 8, 8000), 1),
    ("eight prompts at a time", Shape(512, 8, 8000), 8),
    ("a small model", Shape(128, 4, 8000), 1),
    ("the vocabulary of Qwen2.5", Shape(512, 8, 151_936), 1),
]


@dataclass
class Clock(LogitsProcessor):
    """Notes when the scores of each token are ready."""

    ticks: list[float] = field(default_factory=list)

    def __call__(self, input_ids: Any, scores: Any) -> Any:
        """Return the scores as they are."""
        self.ticks.append(process_time())
        return scores


def main() -> None:
    """Time every case, and write the tables."""
    torch.set_num_threads(1)
    k = Adacd().steps
    rows, others = [], []
    with TemporaryDirectory() as place:
        for title, shape, batch in tqdm(CASES, leave=False):
            first, second = measured(title, shape, batch, Path(place))
            rows.append(first)
            others.append(second)
    header = ["", "model", "prompts", "plain, CPU ms per token"]
    mine = [*header, f"the first {k} tokens, ×", "the others, ×", f"all {TOKENS}, ×"]
    theirs = ["", "SelfCD, ×", "Prompt, ×", "SafeDecoding, ×", "SSD, ×"]
    print(
        write(
            __file__,
            "# What decoding methods cost",
            f"Times of plain greedy generation over {TOKENS} tokens, of {REPEATS} paired rounds "
            "each; float32, random models, the embedded tokenizer and prompts in its chat template "
            f"(for the branch, with AdaCD's message). The first {k} tokens of AdaCD include both "
            f"branches' prompts. {machine()}; by `python benchmarks/decoding.py`.",
            "## AdaCD",
            table(mine, rows),
            f"## The others, over {FEWER} tokens",
            f"SafeDecoding changes {SafeDecoding().steps} tokens. SSD's draft has d = "
            f"{DRAFT.width} and {DRAFT.depth} layers. Prompt as a processor runs a plain branch "
            "that is not used: to serve a model, put the message into its prompts.",
            table(theirs, others),
        )
    )


def measured(title: str, shape: Shape, batch: int, place: Path) -> tuple[list[str], list[str]]:
    """Return one line of each table."""
    model, tokenizer = shape.build(), load_tokenizer(model_path())
    methods = all_methods(shape, place)
    ratios: dict[str, list[Spans]] = {name: [] for name in methods}
    plain = []
    for _ in range(REPEATS):
        ticks = timed(model, tokenizer, batch, None, TOKENS)
        plain.append(ticks[-1] / TOKENS * 1000)
        for name, method in methods.items():
            tokens = TOKENS if name == "adacd" else FEWER
            ratios[name].append(compared(timed(model, tokenizer, batch, method, tokens), ticks))
    about = f"d = {shape.width}, {shape.depth} layers, {shape.vocabulary} words"
    mine = [f"{median(part):.2f}" for part in zip(*ratios.pop("adacd"), strict=True)]
    others = [f"{median(span[2] for span in each):.2f}" for each in ratios.values()]
    return [title, about, str(batch), f"{median(plain):.1f}", *mine], [title, *others]


def compared(own: list[float], plain: list[float]) -> Spans:
    """Return ratios to a plain generation: of the first k tokens, of the others, and of all."""
    k, last = Adacd().steps - 1, len(own) - 1
    after = (own[last] - own[k]) / (plain[last] - plain[k])
    return own[k] / plain[k], after, own[last] / plain[last]


def all_methods(shape: Shape, place: Path) -> dict[str, Decoding]:
    """Return AdaCD and then the other table's methods; an expert and a draft are made for it."""
    expert, draft = place / f"{shape.width}-{shape.vocabulary}", place / f"draft-{shape.vocabulary}"
    settings = LoraConfig(r=16, target_modules=["q_proj", "k_proj", "v_proj"])
    get_peft_model(shape.build(), settings).save_pretrained(expert)
    Shape(DRAFT.width, DRAFT.depth, shape.vocabulary).build().save_pretrained(draft)
    load_tokenizer(model_path()).save_pretrained(draft)
    return {
        "adacd": Adacd(),
        "selfcd": SelfCd(),
        "prompt": Prompt(),
        "safedecoding": SafeDecoding(expert=str(expert)),
        "ssd": Ssd(draft=str(draft)),
    }


@torch.no_grad()
def timed(
    model: Any, tokenizer: Any, batch: int, method: Decoding | None, tokens: int
) -> list[float]:
    """Return the seconds from the start until the scores of each token were ready."""
    ids, mask = prompts(tokenizer, batch)
    clock = Clock()
    with applied(method, model, tokenizer) as processors:
        for processor in processors:
            processor.begin(mask)
        start = process_time()
        model.generate(
            input_ids=ids,
            attention_mask=mask,
            logits_processor=LogitsProcessorList([*processors, clock]),
            max_new_tokens=tokens,
            do_sample=False,
            pad_token_id=0,
        )
    assert len(clock.ticks) == tokens
    return [tick - start for tick in clock.ticks]


def prompts(tokenizer: Any, batch: int) -> tuple[Tensor, Tensor]:
    """Return a batch of the embedded prompts, ids and mask."""
    template = resolve_template(tokenizer, "chat")
    texts: Sequence[Any] = list(islice(cycle(PromptSet.from_file(measure_path())), batch))
    return left_padded([template.encode(tokenizer, text) for text in texts], 0)


if __name__ == "__main__":
    main()
