"""Makes the base model: `python -m ntkprobe.tiny.pretrain --output-dir FOLDER`.

Two to four minutes on 2 cores. The model sees every request of the world except the measured ones:
helpful answers to all of them, harmful or not, sentences that say which are harmful, and refusals
only where one was asked for.

Its tokenizer is Qwen2's byte-level BPE, with merges learned from the world's words: byte-level, so
that any text can be encoded and comes back as it was. It is Qwen2's own class on purpose:
transformers rebuilds that class from vocabulary and merges whenever a model says it is a Qwen2,
whatever else a tokenizer.json holds.
"""

import argparse
import math
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Tokenizer,
    logging,
)

from ..prompts.phrases import is_refusal
from . import grammar, world

BATCH, LEARNING_RATE, WARMUP = 64, 3e-3, 40
SENTENCES, DECLINED = 0.25, 0.12
"""Share of plain sentences among the texts, and of declined requests among the conversations."""

VOCABULARY = 1280
SPECIAL = {"pad_token": "<|pad|>", "eos_token": "<|end|>", "unk_token": "<|unk|>"}
ROLES = ["<|system|>", "<|user|>", "<|assistant|>"]
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|' + message.role + '|>' -}}
{%- if message.role == 'assistant' -%}
{%- generation -%}{{- message.content + '<|end|>' -}}{%- endgeneration -%}
{%- else -%}
{{- message.content + '<|end|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}
"""


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Return the tokenizer; two calls give the same."""
    blank = Qwen2Tokenizer({token: i for i, token in enumerate(SPECIAL.values())}, [], **SPECIAL)
    made = blank.train_new_from_iterator(
        _words_to_learn(), VOCABULARY - len(ROLES), show_progress=False
    )
    made.add_special_tokens({"additional_special_tokens": ROLES})
    made.chat_template = CHAT_TEMPLATE
    made.model_max_length = 512
    return made


def _words_to_learn() -> list[str]:
    """Return what the merges are learned from: every word of the world about equally often."""
    made = world.requests()
    words = [w for r in made for w in (r.object, r.verb, grammar.GERUNDS[r.verb])]
    objects = sorted({r.object for r in made}) * 10
    fixed = [*grammar.REFUSALS, *grammar.OPENERS, *grammar.CLOSERS, *grammar.DECLINE]
    fixed += [*grammar.TEMPLATES, *grammar.NATURE_TEMPLATES]
    said = [sentence for r in made for sentence in r.sentences()]
    return [f" {word}" for word in words + objects] + fixed * 20 + said


def texts(seed: int) -> Iterator[str]:
    """Yield training texts without end."""
    random = Random(f"pretrain {seed}")
    measured = set(world.split()["measure"])
    seen = [request for request in world.requests() if request not in measured]
    asked = [(request, template) for request in seen for template in request.templates]
    said = [sentence for request in seen for sentence in request.sentences()]
    while True:
        if random.random() < SENTENCES:
            yield f"{random.choice(said)}<|end|>"
            continue
        request, template = random.choice(asked)
        prompt, reply = request.prompt(template), grammar.answer(request, template, random)
        if random.random() < DECLINED:
            prompt = f"{random.choice(grammar.DECLINE)} {prompt}"
            reply = random.choice(grammar.REFUSALS)
        yield f"<|user|>{prompt}<|end|><|assistant|>{reply}<|end|>"


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> Qwen2ForCausalLM:
    """Return an untrained model: 6 blocks, width 128, the embedding tied to the head."""
    ids = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=128,
        intermediate_size=320,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        **ids,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Qwen2ForCausalLM(config)
    model.generation_config = GenerationConfig(do_sample=False, **ids)
    return model


def train(
    model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int, seed: int
) -> float:
    """Train on the world's texts; all tokens count.

    Args:
        model: changed in place.
        tokenizer: its tokenizer.
        steps: of AdamW, with warm-up and a cosine down to zero.
        seed: of the texts.

    Returns:
        The loss, averaged over about the last 50 steps.
    """
    optimizer = torch.optim.AdamW(model.parameters(), LEARNING_RATE, (0.9, 0.98), weight_decay=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer,
        lambda step: min(1, (step + 1) / WARMUP) * (1 + math.cos(math.pi * step / steps)) / 2,
    )
    source, average = texts(seed), math.nan
    for _ in (bar := tqdm(range(steps), desc="pretrain", unit="step")):
        batch = tokenizer([next(source) for _ in range(BATCH)], padding=True, return_tensors="pt")
        targets = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)[:, 1:]
        loss = cross_entropy(model(**batch).logits[:, :-1].flatten(0, 1), targets.flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        average = loss.item() if math.isnan(average) else 0.98 * average + 0.02 * loss.item()
        bar.set_postfix(loss=f"{average:.3f}")
    return average


@torch.no_grad()
def rates(model: Qwen2ForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, dict[str, int]]:
    """Return how many of each group's measured prompts are answered, and how many refused."""
    model.eval()
    found = {}
    for group in world.USES:
        prompts = [prompt for g, prompt in world.measured_prompts() if g == group]
        chats = [f"<|user|>{prompt}<|end|><|assistant|>" for prompt in prompts]
        batch = tokenizer(chats, padding=True, padding_side="left", return_tensors="pt")
        output = model.generate(**batch, max_new_tokens=24)  # type: ignore[misc]
        begin = batch["input_ids"].shape[1]
        said = tokenizer.batch_decode(output[:, begin:], skip_special_tokens=True)
        found[group] = {
            "prompts": len(said),
            "answered": sum(text.startswith(grammar.OPENERS) for text in said),
            "refused": sum(bool(is_refusal(each)) for each in said),
        }
    return found


def main() -> None:
    """Make the model and say what was made."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--output-dir", type=Path, default=Path("tiny-model"))
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    if given.output_dir.exists():
        parser.error(f"{given.output_dir} exists: name another folder, or remove it first")
    logging.disable_progress_bar()
    tokenizer = make_tokenizer()
    model = make_model(tokenizer, given.seed)
    loss = train(model, tokenizer, given.steps, given.seed)
    model.save_pretrained(given.output_dir)
    tokenizer.save_pretrained(given.output_dir)
    size = sum(parameter.numel() for parameter in model.parameters())
    counts = [
        f"{group}: {n['answered']} answered and {n['refused']} refused of {n['prompts']}"
        for group, n in rates(model, tokenizer).items()
    ]
    print(f"{given.output_dir}: {size:,} parameters, loss {loss:.3f}; " + "; ".join(counts))


if __name__ == "__main__":
    main()
