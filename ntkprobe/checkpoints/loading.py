"""Loads models: safetensors only, no remote code, every weight accounted for."""

import inspect
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import MeasurementWarning, UserError, one_line
from ..settings import LoadSettings as LoadSettings
from .accounting import require_every_weight, require_finite_weights, some, unfiltered_report
from .completeness import FULL, SHARDED, require_one_form, weight_files
from .folders import models_inside
from .gguf_files import gguf_file
from .gguf_models import gguf_tokenizer, load_gguf
from .headers import Incomplete, read_index, read_json
from .hub_names import require_hub_name
from .safeguards import MALFORMED, checked_config
from .tokenizer_files import difference_from_file

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_checkpoint(folder: Path, settings: LoadSettings | None = None) -> "PreTrainedModel":
    """Return the full model in a folder, ready to be measured; nothing but that folder is read.

    Args:
        folder: best a pin of a checkpoint (`pinned`), whose files were judged and cleaned.
        settings: how to load it.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: if its configuration asks for something refused, or weights are missing, of
            another shape, or not finite.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import CONFIG_MAPPING

    if (folder / "adapter_config.json").exists():
        raise UserError(
            f"{folder} is an adapter, not a model: name the model it was trained on, and this with"
            " --adapter, or to measure it with --ckpt-dir"
        )
    require_one_form(folder)
    try:
        values = checked_config(folder / "config.json")
    except Incomplete as error:
        raise UserError(f"{folder} is no model: {error}") from error
    # Given a configuration object, transformers does not read the file.
    try:
        config = CONFIG_MAPPING[values["model_type"]].from_dict(values)
    except (StrictDataclassError, *MALFORMED) as error:
        raise UserError(f"{folder}/config.json cannot be used: {one_line(error)}") from error
    return load_with_transformers(str(folder), settings or LoadSettings(), config=config)


def load_model(name: str, settings: LoadSettings | None = None) -> "PreTrainedModel":
    """Return a model by its name: a folder, a GGUF file, or a name on the hub.

    Args:
        name: a path or a hub name; only a name that is no path can cause network access.
        settings: how to load it.

    Returns:
        The model in evaluation mode.

    Raises:
        UserError: if there is no such model, or it cannot be loaded whole.
    """  # ruff: ignore[docstring-extraneous-exception]
    if name and (file := gguf_file(name)) is not None:
        return load_gguf(file, settings)
    if name and Path(name).is_dir():
        if not (Path(name) / "adapter_config.json").exists():
            require_model(Path(name))
        return load_checkpoint(Path(name), settings)
    require_hub_name(name)
    return load_with_transformers(name, settings or LoadSettings())


def require_model(folder: Path) -> None:
    """Raise unless a folder holds a whole model or adapter.

    Raises:
        UserError: saying what it lacks, and which models are inside it.
    """
    try:
        weight_files(folder)
    except UserError as error:
        raise UserError(f"{error}{models_inside(folder)}") from error


def load_tokenizer(name: str | Path, *, local: bool = True) -> "PreTrainedTokenizerBase":
    """Return the tokenizer in a folder, or with `local=False` one that the user named.

    Raises:
        UserError: if there is none.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    if (file := gguf_file(name)) is not None:
        return gguf_tokenizer(file)
    if not local and not Path(name).is_dir():
        require_hub_name(str(name))
    # For some architectures (Qwen2 is one) AutoTokenizer builds that family's own tokenizer from
    # the vocabulary, whatever the folder declares: a word-level one becomes a BPE without merges.
    kind: Any = PreTrainedTokenizerFast if _declares_generic(Path(name)) else AutoTokenizer
    try:
        made = kind.from_pretrained(
            str(name), trust_remote_code=False, local_files_only=local or Path(name).is_dir()
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"no tokenizer in {name}{_why_none(name, error)}") from error
    if why := difference_from_file(made, str(name)):
        warnings.warn(why, MeasurementWarning, stacklevel=2)
    return made


def _why_none(name: str | Path, error: Exception) -> str:
    """Return why there is no tokenizer; a folder that is no model at all is told as that."""
    if not Path(name).is_dir():
        return f" on the Hugging Face hub (it is no folder here): {_first_line(error)}"
    require_model(Path(name))
    why = _first_line(error).rstrip()
    if why.endswith(":"):  # the lines that follow list files of all kinds of tokenizers
        why = "tokenizer.save_pretrained(FOLDER) writes its files"
    return f": {why}"


def _declares_generic(folder: Path) -> bool:
    """Return whether a folder's tokenizer is nothing but its `tokenizer.json`."""
    try:
        declared = read_json(folder / "tokenizer_config.json").get("tokenizer_class")
    except (Incomplete, UserError):
        return False
    generic = declared in ("TokenizersBackend", "PreTrainedTokenizerFast")
    return generic and (folder / "tokenizer.json").is_file()


def load_with_transformers(
    name: str, settings: LoadSettings, config: Any = None
) -> "PreTrainedModel":
    """Return the model from transformers.

    Args:
        name: a folder or a hub name.
        settings: how to load it.
        config: a folder's, judged and cleaned; None for a hub name.

    Returns:
        The model.

    Raises:
        UserError: each failure as one line.
    """
    import torch
    from transformers import AutoModelForCausalLM, PreTrainedModel

    place = None if settings.device_map else settings.placement()  # a wrong one loads nothing
    local = config is not None
    options: dict[str, Any] = {"config": config} if local else {}
    if settings.device_map:
        options["device_map"] = settings.device_map
    # A memory-mapped file that shrinks kills the process (SIGBUS): no exception, exit status 135.
    if "disable_mmap" in inspect.signature(PreTrainedModel.from_pretrained).parameters:
        options["disable_mmap"] = True
    try:
        with unfiltered_report() as report:
            model: Any = AutoModelForCausalLM.from_pretrained(
                name,
                dtype=getattr(torch, settings.dtype),
                attn_implementation=settings.attn_implementation,
                use_safetensors=True,
                trust_remote_code=False,
                local_files_only=local,
                **options,
            )
    except (OSError, RuntimeError, ImportError, *MALFORMED) as error:
        where = name if local else f"{name} from the Hugging Face hub (it is no folder here)"
        raise UserError(f"cannot load {where}: {_first_line(error)}") from error
    try:
        folder = Path(name) if local else _fetched(name)
        require_every_weight(model, report, _weights_in(folder) if folder else [], name)
    except (Incomplete, OSError) as error:
        raise UserError(f"{name} changed while it was loaded: {error}") from error
    require_weights_in_memory(model, name)
    require_finite_weights(model, name)
    return (model if place is None else model.to(place)).eval()


def _fetched(name: str) -> Path | None:
    """Return where the weights of a model on the hub are in its cache, now that it was loaded."""
    from huggingface_hub import try_to_load_from_cache

    found = (try_to_load_from_cache(name, file) for file in (FULL, SHARDED))
    return next((Path(file).parent for file in found if isinstance(file, str)), None)


def _weights_in(folder: Path) -> list[Path]:
    """Return the files that transformers takes a folder's weights from."""
    if (folder / FULL).is_file():
        return [folder / FULL]
    return [folder / name for name in read_index(folder / SHARDED)]


def require_weights_in_memory(model: "nn.Module", name: str) -> None:
    """Raise if parameters were offloaded: autograd would leave them out without a word.

    Raises:
        UserError: naming the parameters.
    """
    wrong = [key for key, value in model.named_parameters() if value.is_meta]
    if wrong:
        raise UserError(f"{name} does not fit: {some(wrong)} offloaded; use more or larger GPUs")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
