"""Loads models from GGUF files, dequantised, with every tensor of the file accounted for.

transformers reads the file; what it leaves out without a word (further tensors, scaled rotary
positions) would be another model, and is refused here.
"""

import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from ..errors import UserError, one_line
from ..models.memory import return_freed_memory
from ..settings import LoadSettings
from .accounting import require_finite_weights
from .gguf_files import GgufFile, describe

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

DECISIVE = {
    "rope.scaling.factor": ("factor",),
    "attention.sliding_window": ("sliding_window", "attention_window_size"),
    "attention.scale": ("attention_multiplier", "query_pre_attn_scalar"),
    "attention.clamp_kqv": ("clip_qkv",),
    "attn_logit_softcapping": ("attn_logit_softcapping",),
    "final_logit_softcapping": ("final_logit_softcapping",),
    "logit_scale": ("logit_scale", "logits_scaling"),
    "embedding_scale": ("embedding_multiplier",),
    "residual_scale": ("residual_multiplier",),
    "expert_weights_scale": ("routed_scaling_factor",),
}
"""Settings of a family that change its numbers, and what transformers' configurations call them."""

NEUTRAL = (0, 1)
"""Values of these that change nothing."""

DIGITS_APART = ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone")
"""Names of pre-tokenizers that take every digit for itself, and split as GPT-2's otherwise."""

CHECKED = (*DIGITS_APART, "gpt-2", "gpt2", "default", "llama-bpe", "llama3", "qwen2")
"""Those of which it is known how they split; of others we say that it is not."""

BOS_FIRST = ("llama3", "llama-v3", "llama-bpe", "falcon3", "falcon-h1", "pixtral", "lfm2")
"""Pre-tokenizers of files that need not ask for BOS in front: llama.cpp puts it there unasked."""

CANNOT_LOAD = "transformers cannot load it"

_announced: set[str] = set()


def load_gguf(file: Path, settings: LoadSettings | None = None) -> "PreTrainedModel":
    """Return the model in a GGUF file, dequantised, as an ordinary model that can be trained.

    Args:
        file: the file.
        settings: how to load it; weights are dequantised to float32 and then cast to its `dtype`.

    Returns:
        The model in evaluation mode, without a trace of quantisation in its configuration.

    Raises:
        UserError: if it is not whole, of an architecture that transformers cannot load, or if
            something in it would be left out.
    """
    how = settings or LoadSettings()
    if how.device_map:
        raise UserError(
            f"{file}: --device-map does not go with a GGUF file: write it into a folder first, with"
            f" ntkprobe export --model {file} --output-dir FOLDER"
        )
    place = how.placement()  # a wrong one loads nothing
    about = describe(file)
    model = _plain(_read(about), how)
    # An adapter trained over it will name this as its base.
    model.name_or_path = model.config.name_or_path = str(file.resolve())
    _require_all_tensors(about, model)
    _require_settings(about, model.config)
    require_finite_weights(model, str(file))
    _log_loading(about)
    return_freed_memory()  # of dequantising, most of the weights' size
    return model.to(place).eval()  # type: ignore[arg-type]


def require_loadable(file: Path) -> None:
    """Raise if `load_gguf` will refuse a file, as far as its header tells; no weights are read.

    Args:
        file: the file.

    Raises:
        UserError: if it is of an architecture that transformers cannot load, or if something in it
            would be left out.
    """  # ruff: ignore[docstring-extraneous-exception]
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    about = describe(file)
    with _alone(file) as folder, _failures(about, CANNOT_LOAD), no_bars():
        config = AutoConfig.from_pretrained(
            folder, gguf_file="model.gguf", trust_remote_code=False, local_files_only=True
        )
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
    _require_all_tensors(about, model)
    _require_settings(about, model.config)


def gguf_tokenizer(file: Path) -> "PreTrainedTokenizerBase":
    """Return the tokenizer and chat template in a GGUF file.

    Args:
        file: the file.

    Returns:
        The tokenizer.

    Raises:
        UserError: if the file holds none that transformers can build.
    """
    from transformers import PreTrainedTokenizerFast

    about = describe(file)
    with _alone(file) as folder, _failures(about, "no tokenizer can be built"):
        made = PreTrainedTokenizerFast.from_pretrained(
            folder, gguf_file="model.gguf", local_files_only=True
        )
    made.name_or_path = str(file.resolve())
    made.chat_template = about.template
    kind, split = (about.settings.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    if kind == "gpt2":
        _split_digits(made, str(split))
        if split in BOS_FIRST and "tokenizer.ggml.add_bos_token" not in about.settings:
            made.add_bos_token = True
    rows = about.shapes.get("token_embd.weight", (0,))[0]
    if rows and len(made) > rows:
        raise UserError(f"{file}: {len(made)} tokens, but only {rows} embeddings: refused")
    return made


def _split_digits(tokenizer: Any, name: str) -> None:
    """Make a byte-level tokenizer split digits as the file asks; say so where that is not known."""
    from tokenizers import pre_tokenizers

    if name in DIGITS_APART:  # transformers reads the name, and knows nothing of this kind
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
    elif name not in (*CHECKED, "None"):
        _log_once(
            f"the file's pre-tokenizer {name!r} is taken as transformers reads it, unchecked here"
        )


def _read(about: GgufFile) -> "PreTrainedModel":
    """Return the model as transformers reads it, in float32.

    Raises:
        UserError: if it cannot.
    """
    import torch
    from transformers import AutoModelForCausalLM

    with _alone(about.path) as folder, _failures(about, CANNOT_LOAD), no_bars():
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            gguf_file="model.gguf",
            dtype=torch.float32,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    model, report = loaded
    if missing := sorted(str(key) for key in report["missing_keys"]):
        raise UserError(f"{about.path} lacks weights for {missing[0]} and {len(missing) - 1} more")
    return model


def _plain(read: "PreTrainedModel", how: LoadSettings) -> "PreTrainedModel":
    """Return the model rebuilt from a configuration without quantisation."""
    import copy

    import torch
    from transformers import AutoModelForCausalLM

    config: Any = copy.deepcopy(read.config)
    if hasattr(config, "quantization_config"):
        del config.quantization_config
    with torch.random.fork_rng():  # its first values, which are replaced, cost no random numbers
        model = AutoModelForCausalLM.from_config(
            config, attn_implementation=how.attn_implementation, dtype=torch.float32
        )
    model.load_state_dict(read.state_dict(), strict=True)
    model.tie_weights()
    model.generation_config = read.generation_config
    return model.to(getattr(torch, how.dtype))


def _require_all_tensors(about: GgufFile, model: "PreTrainedModel") -> None:
    """Raise if the file holds more or fewer numbers than the model's parameters.

    Raises:
        UserError: naming tensors that fit no parameter.
    """
    from math import prod

    held = sum(map(prod, about.shapes.values()))
    parameters = {id(p): p for p in model.parameters()}
    taken = sum(p.numel() for p in parameters.values())
    if held == taken:
        return
    sizes = {p.numel() for p in parameters.values()}
    strange = [name for name, shape in about.shapes.items() if prod(shape) not in sizes]
    some = f" (such as {', '.join(strange[:3])})" if strange else ""
    raise UserError(
        f"{about.path}: {held:,} numbers in the file, {taken:,} in the model that transformers"
        f" makes of it{some}: it would be another model"
    )


def _require_settings(about: GgufFile, config: Any) -> None:
    """Raise if a setting that changes the numbers did not reach transformers' configuration.

    Raises:
        UserError: naming it.
    """
    held = list(_numbers(config.to_dict()))
    for name, known_as in DECISIVE.items():
        key = f"{about.architecture}.{name}"
        value = about.settings.get(key)
        if not isinstance(value, int | float) or value in NEUTRAL:
            continue
        taken = [number for at, number in held if at in known_as]
        if not any(abs(value - number) <= 1e-6 * abs(value) for number in taken):
            raise UserError(
                f"{about.path} asks for {key} = {value:g}, which transformers does not take over:"
                " it would be another model"
            )


def _numbers(value: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Yield every number in a configuration with its name, at any depth."""
    for key, item in value.items():
        if isinstance(item, dict):
            yield from _numbers(item)
        elif isinstance(item, int | float) and not isinstance(item, bool):
            yield key, item


@contextmanager
def _alone(file: Path) -> Generator[str]:
    """Yield a folder that holds only the file, so that nothing beside it is read."""
    with TemporaryDirectory(prefix="ntkprobe-gguf-") as folder:
        (Path(folder) / "model.gguf").symlink_to(file.resolve())
        yield folder


@contextmanager
def _failures(about: GgufFile, what: str) -> Generator[None]:
    """Turn what libraries raise about a file into one line.

    Raises:
        UserError: that line.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # two libraries parse untrusted bytes: they fail in many ways
        reason = one_line(next(iter(str(error).splitlines()), type(error).__name__))[:200]
        raise UserError(
            f"{about.path} (architecture {about.architecture!r}, SHA-256 {about.digest[:12]}…):"
            f" {what}: {reason}"
        ) from error


@contextmanager
def no_bars() -> Generator[None]:
    """Let transformers show no bars while it dequantises a file: some are not switched off."""
    from transformers import modeling_gguf_pytorch_utils as reading
    from transformers.utils import logging

    level, shown = logging.get_verbosity(), logging.is_progress_bar_enabled()
    own = reading.tqdm
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    reading.tqdm = lambda tensors, **_: tensors  # type: ignore[assignment]
    try:
        yield
    finally:
        reading.tqdm = own
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()


def _log_loading(about: GgufFile) -> None:
    """Log once what is loaded."""
    if about.digest not in _announced:
        _announced.add(about.digest)
        _log_once(about.about())


def _log_once(text: str) -> None:
    print(f"ntkprobe: {one_line(text)}", file=sys.stderr)
