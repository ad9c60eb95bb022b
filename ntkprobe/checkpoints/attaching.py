"""Attaches an adapter from its folder to a base in memory, with every tensor accounted for.

The base's embeddings are first resized to the number of rows that the adapter was trained with.
"""

import dataclasses
import re
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import UserError, one_line
from ..models.architecture import embedding, head
from ..models.peft_modules import adapter_parameters, parameter_locations
from .base_state import BaseState
from .completeness import ADAPTER, require_safetensors
from .headers import read_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# The initialisations that leave the base weights alone.
PLAIN_INITIALISATIONS = (True, False, "gaussian")
# Options that make something else of LoRA; newer versions of peft mark them, and more, themselves.
_VARIANTS = {
    "use_dora",
    "use_qalora",
    "alora_invocation_tokens",
    "arrow_config",
    "layer_replication",
}
# What peft raises for a configuration, or tensors, that it cannot make anything of.
REFUSALS = (
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    RuntimeError,
    AttributeError,
    NotImplementedError,
    ImportError,
    AssertionError,
)
_PREFIX = "base_model.model."
_WRAPPED = re.compile(r"\.(base_layer|token_adapter|original_module)(?=\.)")
_CONVERT = "save it with path_initial_model_for_weight_conversion, or merged"

Sizes = dict[str, torch.Size]
"""Shapes of a base's parameters, by name."""


def plain_lora(config: Any) -> bool:
    """Return whether an adapter only adds s·BA to matrices of the base as it is."""
    start = getattr(config, "init_lora_weights", None)
    return start in PLAIN_INITIALISATIONS and not _variants(config)


def _variants(config: Any) -> set[str]:
    """Return the options by which an adapter is no LoRA, or a variant of it."""
    kind = str(getattr(config.peft_type, "value", config.peft_type))
    marked = {f.name for f in dataclasses.fields(config) if f.metadata.get("is_lora_variant")}
    chosen = {name for name in marked | _VARIANTS if getattr(config, name, None)}
    return chosen | ({kind} if kind != "LORA" else set())


def _leaves_base_unchanged(config: Any) -> bool:
    """Return whether peft writes only into tensors of the base that the adapter's file names.

    An initialisation not known to leave the base unchanged counts as writing into it: OLoRA,
    PiSSA, LoftQ, KaSA.
    """
    start = getattr(config, "init_lora_weights", None)
    known = start in (*PLAIN_INITIALISATIONS, "eva", "orthogonal", "mica")
    return known and _variants(config) <= {"use_dora"}


def attach(base: "PreTrainedModel", folder: Path, state: BaseState) -> Any:
    """Return a PeftModel over `base` with exactly the tensors of an adapter's file.

    Args:
        base: the model; its embeddings are resized as the adapter's were.
        folder: the adapter.
        state: what the base was before; copies stand for whatever is written in place.

    Raises:
        UserError: if the adapter cannot be used, or some tensor of it is missing, left over, or of
            another shape.
    """
    from peft import PeftModelForCausalLM, set_peft_model_state_dict
    from safetensors.torch import load

    require_safetensors(folder, ADAPTER)
    config = read_config(folder)
    # load(bytes), not load_file: a memory-mapped file that shrinks kills the process.
    tensors = load((folder / ADAPTER).read_bytes())
    written = {_WRAPPED.sub("", name.removeprefix(_PREFIX)): t for name, t in tensors.items()}
    if _leaves_base_unchanged(config):
        state.guard_named(set(written))  # biases, resized embeddings: peft copies them in place
    else:
        state.guard()
    sizes = resize(base, written, config, folder)
    known = {id(t) for t in base.state_dict(keep_vars=True).values()}
    try:
        with _quiet_and_seeded():
            model = PeftModelForCausalLM(base, config)
            report: Any = set_peft_model_state_dict(model, tensors)
    except REFUSALS as error:
        how = "" if _leaves_base_unchanged(config) else f"; {_CONVERT}"
        raise UserError(
            f"{folder.name}: the adapter does not fit the base: {one_line(error)}{how}"
        ) from error
    report.unexpected_keys[:] = _unknown(report.unexpected_keys, tensors)
    _require_complete(model, report, known, sizes, folder)
    return model


def _unknown(left: list[str], tensors: dict[str, Tensor]) -> list[str]:
    """Return what was left over of a file, without what it holds a second time.

    With `save_embedding_layers`, peft saves modules trained whole, and tied rows, under two names.
    """
    used = [value for name, value in tensors.items() if name not in left]
    return [
        name
        for name in left
        if name not in tensors or not any(torch.equal(tensors[name], value) for value in used)
    ]


def read_config(folder: Path) -> Any:
    """Return an adapter's configuration.

    Raises:
        UserError: if peft, or the version of it here, cannot do what it says.
    """
    from peft import PeftConfig
    from peft import __version__ as version

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about unknown options, which are refused below
            config = PeftConfig.from_pretrained(str(folder), local_files_only=True)
    except REFUSALS as error:
        raise UserError(
            f"{folder.name}: adapter_config.json cannot be used: {one_line(error)}"
        ) from error
    known = {f.name for f in dataclasses.fields(config)}
    values = read_json(folder / "adapter_config.json")
    if unknown := sorted(name for name, value in values.items() if value and name not in known):
        raise UserError(
            f"{folder.name}: adapter_config.json sets {unknown[0]}, which peft {version} does not "
            "know and would leave out: install a newer peft"
        )
    if why := _unusable(config):
        raise UserError(f"{folder.name}: {why}")
    config.inference_mode = True
    return config


def _unusable(config: Any) -> str:
    """Return why an adapter of this configuration is not measured, or nothing."""
    start = str(getattr(config, "init_lora_weights", True))
    if config.is_prompt_learning:
        return f"{config.peft_type} adapters have no merged weights; use LoRA"
    if str(getattr(config.peft_type, "value", config.peft_type)) == "XLORA":
        return "X-LoRA mixes other adapters, which its configuration names: they are not fetched"
    if getattr(config, "layer_replication", None):
        return "layer_replication makes another model of the base: save it merged"
    if start.startswith("pissa_niter"):
        return (
            f"init_lora_weights={start!r} takes a random part out of the base, which the adapter "
            f"does not hold: {_CONVERT}"
        )
    if start == "lora_ga":
        return (
            "init_lora_weights='lora_ga' changed the base by gradients that the adapter does not "
            f"hold: {_CONVERT}"
        )
    return ""


@contextmanager
def _quiet_and_seeded() -> Generator[None]:
    """Preserve the random state, and silence peft's warnings about ties, which are handled here."""
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _require_complete(
    model: nn.Module, report: Any, known: set[int], sizes: Sizes, folder: Path
) -> None:
    """Raise unless the file held every tensor that the adapter brings or trains, and no other.

    Args:
        model: the PeftModel.
        report: torch's, of what was missing from the file and what was left over.
        known: the tensors that the base had.
        sizes: of the base's tensors before they were resized.
        folder: the adapter.

    Raises:
        UserError: naming a tensor.
    """
    every, absent = model.state_dict(keep_vars=True), set(report.missing_keys)
    # By identity: of tied tensors, one name is enough.
    held = {id(t) for name, t in every.items() if name not in absent}
    trained = {id(p): name for name, p in adapter_parameters(model).items()}
    brought = {id(t): name for name, t in every.items() if id(t) not in known} | trained
    missing = sorted(name for own, name in brought.items() if own not in held)
    if missing or report.unexpected_keys:
        wrong = (missing or list(report.unexpected_keys))[0]
        what = "its file lacks" if missing else "its file has, and the base has no place for,"
        raise UserError(f"{folder.name}: the adapter does not fit the base: {what} {wrong}")
    for location in parameter_locations(model):
        if sizes.get(location.name, location.parameter.shape) == location.parameter.shape:
            continue
        if id(location.parameter) not in held:
            raise UserError(
                f"{folder.name} was trained with {location.parameter.shape[0]} rows of embeddings, "
                f"of which {location.name} has {sizes[location.name][0]} here, and its file lacks "
                "the others: save it with save_embedding_layers=True, or give the resized base "
                "with --model"
            )


def resize(base: "PreTrainedModel", written: dict[str, Tensor], config: Any, folder: Path) -> Sizes:
    """Give the base as many rows of embeddings as an adapter's tensors have.

    Args:
        base: the model, changed in place; the values of new rows are arbitrary.
        written: the adapter's tensors, by the names that those of the base have in it.
        config: the adapter's configuration.
        folder: the adapter; its tokenizer, if it has one, tells how many tokens there are.

    Returns:
        The shape that each parameter of the base had, by name.

    Raises:
        UserError: if the rows needed are more than the base has and the adapter holds.
    """
    sizes = {location.name: location.parameter.shape for location in parameter_locations(base)}
    ends = _ends(base)
    rows = int(next(iter(ends.values()), torch.empty(0)).shape[0])
    found = {name: _rows(name, written) for name in ends}
    wanted = {count for counts in found.values() for count in counts} - {rows}
    if len(wanted) > 1:
        raise UserError(f"{folder.name}: its embeddings have {sorted(wanted)} rows: not one size")
    now = wanted.pop() if wanted else rows
    _require_rows(now, rows, config, folder)
    if now != rows:
        try:
            with torch.random.fork_rng(devices=[]):
                base.resize_token_embeddings(now, mean_resizing=False)
        except (ValueError, RuntimeError, NotImplementedError, AttributeError) as error:
            raise UserError(
                f"{folder.name} was trained with {now} rows of embeddings, and the base has "
                f"{rows}, which cannot be resized: {one_line(error)}"
            ) from error
    return sizes


def _ends(base: "PreTrainedModel") -> dict[str, Tensor]:
    """Return the matrices of the embedding and the head, by the names of their modules."""
    modules = [module for module in (embedding(base), head(base)) if module is not None]
    return {
        name: matrix
        for name, module in base.named_modules(remove_duplicate=False)
        if any(module is end for end in modules)
        and isinstance(matrix := getattr(module, "weight", None), Tensor)
    }


def _rows(name: str, written: dict[str, Tensor]) -> set[int]:
    """Return how many rows an adapter's tensors give a matrix of the base: whole, or by LoRA."""
    whole = (f"{name}.weight", f"{name}.lora_B.weight")
    counts = {int(written[key].shape[0]) for key in whole if key in written}
    table = written.get(f"{name}.lora_embedding_A")
    return counts | ({int(table.shape[1])} if table is not None else set())


def _require_rows(now: int, rows: int, config: Any, folder: Path) -> None:
    """Raise if tokens have no row.

    Raises:
        UserError: saying how many tokens and rows there are.
    """
    where = f"the base has {rows} rows of embeddings"
    cure = "save it with save_embedding_layers=True, or give the resized base with --model"
    trained: Any = getattr(config, "trainable_token_indices", None) or []
    each = trained.values() if isinstance(trained, dict) else [trained]
    highest = max((token for some in each for token in some), default=-1)
    if highest >= now:
        raise UserError(f"{folder.name} trains the token {highest}; {where}: {cure}")
    tokens = _tokens(folder)
    if tokens > now:
        raise UserError(
            f"{folder.name}: its tokenizer has {tokens} tokens; {where} and the adapter holds no "
            f"resized ones: {cure}"
        )


def _tokens(folder: Path) -> int:
    """Return how many tokens the tokenizer in a folder has with those added to it, 0 for none."""
    ids = [-1]
    if (folder / "tokenizer.json").is_file():
        added: Any = read_json(folder / "tokenizer.json", limit=512 << 20).get("added_tokens") or []
        ids += [token.get("id", -1) for token in added if isinstance(token, dict)]
    if (folder / "added_tokens.json").is_file():
        ids += list(read_json(folder / "added_tokens.json").values())
    return max(token for token in ids if isinstance(token, int)) + 1
