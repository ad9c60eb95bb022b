"""How far off blocks are that are computed in bfloat16 throughout: `Gram(dtype=torch.bfloat16)`.

`python benchmarks/bfloat16.py` writes `bfloat16.md`; a minute on 2 cores. Every model's
weights are rounded to bfloat16 first, and the reference is the default, float32 at these same
weights. So the error is of computing alone, ‖K − K_ref‖_F / ‖K_ref‖_F of each block.
"""

import torch
from support.models import Shape, ragged_prompts, top_probes
from support.tables import machine, table, write
from torch import Tensor, nn
from tqdm import tqdm
from transformers import AutoModelForCausalLM

from ntkprobe import PromptSet, tiny
from ntkprobe.checkpoints import load_tokenizer
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import norms, similarity
from ntkprobe.measurement import encode

PROMPTS, LENGTHS, K = 8, (8, 16), 5
SHAPES = [
    Shape(width, depth, 2000, spread)
    for width, depth, spreads in (
        (64, 2, (0.02, 0.1, 0.2)),
        (256, 4, (0.02, 0.05, 0.1)),
        (512, 4, (0.02, 0.05)),
    )
    for spread in spreads
]
SEEDS = 3
TRAINED = "the demo's trained base"


def main() -> None:
    """Measure every shape with some seeds, and write the table."""
    rows = [row(TRAINED, "", [measured(*trained())])]
    for shape in tqdm(SHAPES):
        title = f"d = {shape.width}, {shape.depth} layers"
        found = [measured(*born(shape, seed)) for seed in range(SEEDS)]
        rows.append(row(title, f"{shape.spread:g}", found))
    print(
        write(
            __file__,
            "# The kernel in bfloat16",
            f"Qwen2, tied, {PROMPTS} prompts of {LENGTHS[0]} to {LENGTHS[1]} random tokens, "
            f"k = {K}, all parameters, {SEEDS} seeds; weights drawn with this spread (0.02 is what "
            f"transformers draws with). {TRAINED.capitalize()}: d = 128, its own prompts. Errors "
            "of blocks against float32 at the same, rounded weights: the mean, the worst block of "
            "a prompt with itself, the worst of two prompts; and the worst error of a similarity, "
            f"‖K(x′,x)‖/‖K(x′,x′)‖. {machine()}; by `python benchmarks/bfloat16.py`.",
            table(["model", "spread", "mean", "worst self", "worst pair", "similarity"], rows),
        )
    )


def row(title: str, spread: str, found: list[tuple[Tensor, Tensor]]) -> list[str]:
    """Return a line of the table from what each seed gave."""
    errors, similarities = (torch.stack(each) for each in zip(*found, strict=True))
    selves = errors.diagonal(dim1=1, dim2=2)
    pairs = errors[:, ~torch.eye(PROMPTS, dtype=torch.bool)]
    cells = [errors.mean(), selves.max(), pairs.max(), similarities.max()]
    return [title, spread, *(f"{float(cell):.1%}" for cell in cells)]


def born(shape: Shape, seed: int) -> tuple[nn.Module, list[Tensor]]:
    """Return a random model and random prompts."""
    prompts = ragged_prompts(PROMPTS, LENGTHS, shape.vocabulary, seed)
    return shape.build(seed), prompts


def trained() -> tuple[nn.Module, list[Tensor]]:
    """Return the embedded model and some prompts of each of its groups."""
    path = str(tiny.model_path())
    model = AutoModelForCausalLM.from_pretrained(path, attn_implementation="eager").eval()
    prompts = PromptSet.from_file(tiny.measure_path()).sample(per_group=3, seed=0)
    encoded = encode(load_tokenizer(path), prompts.take(range(PROMPTS)), "auto")
    return model, [torch.tensor(ids) for ids in encoded.input_ids]


def measured(model: nn.Module, prompts: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the relative errors of blocks and of similarities, `[n, n]` each."""
    model.bfloat16()
    probes = top_probes(model, prompts, K)
    rough, exact = Gram(dtype=torch.bfloat16)(model, probes), Gram()(model, probes)
    right = similarity(norms(exact))
    return norms(rough - exact) / norms(exact), (similarity(norms(rough)) - right).abs() / right


if __name__ == "__main__":
    main()
