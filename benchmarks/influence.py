"""What a column of influence costs, in forward-backward passes of the observed prompts.

`python benchmarks/influence.py` writes `influence.md`; some minutes on one core. A column is one
learnt pair and all observed prompts. All ways of one line run in turn, several times over, on one
thread; ratios are of the medians of their processor time, which other programs on the machine
disturb less than the clock.
"""

from collections.abc import Callable, Sequence
from statistics import median
from time import process_time

import torch
from peft import LoraConfig, get_peft_model
from refusal import tokens_of
from support.models import Shape, ragged_prompts
from support.tables import machine, table, write
from torch import Tensor, nn
from tqdm import tqdm

import ntkprobe as ntk
from ntkprobe.kernel import last_logits
from ntkprobe.models.generation import length_batches
from ntkprobe.models.parameters import ParameterSelection, requiring_grad
from ntkprobe.prompts.phrases import PAPER31
from ntkprobe.refusal import differentiable_scorer

OBSERVED, PAIRS, REPEATS, BATCH = 75, 25, 3, 32
MIDDLE = Shape(256, 4, 8000)
CASES = [
    ("prompts of a line", MIDDLE, (20, 30), "all"),
    ("the same, LoRA", MIDDLE, (20, 30), "lora"),
    ("within a chat template", MIDDLE, (50, 60), "all"),
    ("a small model", Shape(128, 4, 2000), (20, 30), "all"),
]


def main() -> None:
    """Time every case, and write the table."""
    torch.set_num_threads(1)
    phrases = tokens_of(PAPER31)
    header = ["", "model", "one pass, CPU s", "log π of all tokens, ×"]
    header += ["log P_refuse, the pair alone, ×", f"… one of {PAIRS} pairs, ×"]
    header += ["the pass with the phrases, ×", "alone, × that", f"one of {PAIRS}, × that"]
    rows = [measured(*case, phrases) for case in tqdm(CASES, leave=False)]
    sections = [
        "# The cost of influence",
        f"One pair (a prompt and an answer of 12 tokens) and {OBSERVED} observed prompts, float32. "
        "*One pass* is a forward-backward pass of the observed prompts alone, the loss on the "
        "token after each, over the same parameters; every × is times of it. *log π of all "
        "tokens* is a column of `ntk.influence(…, phrases=None)`: a backward pass of the pair and "
        "one pass in forward mode. *log P_refuse* is a column of `ntk.influence(…, tokens=None)` "
        "over the paper's 31 phrases: for a pair alone in forward mode; for several pairs in "
        f"reverse, once for all, of which one of {PAIRS} bears its part. These passes run the "
        "phrases behind each prompt too, so that the last columns set them against a "
        f"forward-backward pass that does. {BATCH} prompts at a time; medians of {REPEATS} "
        f"interleaved runs, processor time; {machine()}; by `python benchmarks/influence.py`.",
        table(header, rows),
    ]
    print(write(__file__, *sections))


def measured(
    title: str, shape: Shape, lengths: tuple[int, int], parameters: str, phrases: list
) -> list[str]:
    """Return one line of the table."""
    model = shape.build()
    if parameters == "lora":
        targets = ["q_proj", "k_proj", "v_proj"]
        model = get_peft_model(model, LoraConfig(r=8, target_modules=targets)).eval()
    prompts = ragged_prompts(OBSERVED, lengths, shape.vocabulary)
    ids = ragged_prompts(2 * PAIRS, (12, 12), shape.vocabulary, seed=1)
    pairs = list(zip(ids[:PAIRS], ids[PAIRS:], strict=True))

    def column(number: int, **how: object) -> Callable[[], object]:
        given = {"observed": prompts, "updated": pairs[:number], "batch_size": BATCH}
        return lambda: ntk.influence(model, None, **given, parameters=parameters, **how)

    ways = {
        "pass": lambda: forward_backward(model, prompts, parameters),
        "tokens": column(1, phrases=None),
        "alone": column(1, tokens=None, phrases=phrases),
        "several": column(PAIRS, tokens=None, phrases=phrases),
        "phrases": lambda: forward_backward(model, prompts, parameters, phrases),
    }
    seconds = timed(ways)
    one, behind, share = seconds["pass"], seconds["phrases"], seconds["several"] / PAIRS
    ratios = [seconds["tokens"] / one, seconds["alone"] / one, share / one]
    ratios += [behind / one, seconds["alone"] / behind, share / behind]
    about = f"d = {shape.width}, {shape.depth} layers, {shape.vocabulary} words"
    return [
        f"{title}, {lengths[0]}–{lengths[1]} tokens",
        about,
        f"{one:.2f}",
        *(f"{ratio:.2f}" for ratio in ratios),
    ]


def forward_backward(
    model: nn.Module, prompts: Sequence[Tensor], parameters: str, phrases: list | None = None
) -> None:
    """Run the prompts, and with `phrases` these behind each, forward and backward in batches."""
    chosen = ParameterSelection.parse(parameters).parameters(model)
    score = differentiable_scorer(model, max(prompts, key=len), phrases) if phrases else None
    with requiring_grad(model, chosen):
        for rows in length_batches(prompts, BATCH):
            batch = [prompts[row] for row in rows]
            values = last_logits(model, batch).log_softmax(-1)[:, 0]
            loss = values.sum() if score is None else score(batch).logsumexp(-1).sum()
            torch.autograd.grad(loss, list(chosen.values()), materialize_grads=True)


def timed(ways: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the median seconds of each way, all of them run in turn."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(REPEATS + 1):
        for name, way in ways.items():
            start = process_time()
            way()
            seconds[name].append(process_time() - start)
    return {name: median(each[1:]) for name, each in seconds.items()}  # the first one warms up


if __name__ == "__main__":
    main()
