"""What dataclasses of settings share: which field is which option, and what two records differ in.

A command has one frozen dataclass of settings. Its fields make the command's options, with the
texts of the class's `Attributes:` as their help; the library takes the settings as they are; and
`run.json` records them. `require_same_settings` is the one comparison of such records.
`parse_yaml` reads what a user wrote.
"""

import inspect
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import yaml

from .errors import UserError

DTYPES = ("float32", "float64", "bfloat16", "float16")
DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")  # accelerate's
_SCALARS = {
    "tag:yaml.org,2002:null": (r"~|null|Null|NULL|", "~nN\0"),
    "tag:yaml.org,2002:merge": (r"<<", "<"),
    "tag:yaml.org,2002:bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "tag:yaml.org,2002:int": (r"[-+]?[0-9]+", "-+0123456789"),
    "tag:yaml.org,2002:float": (
        r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}
"""What YAML 1.2's core schema takes as something else than text, and how it may begin."""
_ENTRY = re.compile(r"^ {4}(\w+): (.*(?:\n {8}.*)*)", re.MULTILINE)


@dataclass(frozen=True, kw_only=True)
class Flag:
    """How a field of settings is shown as an option, as in `Annotated[int, Flag(panel=…)]`.

    Attributes:
        panel: the heading under which `--help` lists it.
        metavar: what stands for its value.
        name: the option's name with underscores; by default that of the field.
        decls: the option's spellings, such as `--lr`; by default made from the name.
        typed: the type of what is typed, where that is not the field's.
        convert: makes the field's value from what was typed.
        default: the default of what is typed, where that is not the field's.
        shows: what `--help` says instead of the default.
        help: what `--help` says, where the field's own documentation does not suit an option.
        callback: called with the context and the value before any other option is read.
        shown: whether there is such an option at all.
        argument: whether it is typed without the option's name, by its place.
        least: the smallest number allowed.
        only: of a field that is itself settings: which of its fields are options; all by default.
    """

    panel: str | None = None
    metavar: str | None = None
    name: str | None = None
    decls: tuple[str, ...] = ()
    typed: Any = None
    convert: Callable[[Any], Any] | None = None
    default: Any = None
    shows: str | None = None
    help: str | None = None
    callback: Callable[..., Any] | None = None
    shown: bool = True
    argument: bool = False
    least: float | None = None
    only: tuple[str, ...] = ()


NO_OPTION = Flag(shown=False)
LOADING = "Loading and memory"


def field_docs(settings: type) -> dict[str, str]:
    """Return what a dataclass of settings and its bases say of each field under `Attributes:`.

    Args:
        settings: the class.

    Returns:
        One line of text by field.
    """
    found: dict[str, str] = {}
    for kind in reversed(settings.__mro__):
        _, _, attributes = inspect.cleandoc(kind.__doc__ or "").partition("Attributes:\n")
        for name, text in _ENTRY.findall(attributes):
            found[name] = " ".join(text.split())
    return found


@dataclass(frozen=True, kw_only=True)
class LoadSettings:
    """How models are loaded.

    Attributes:
        dtype: precision of the weights, whatever they were stored in: `float32`, `float64`,
            `bfloat16` or `float16`.
        device: `auto` (a GPU where there is one), `cpu`, `cuda`, `cuda:1`, `mps`.
        device_map: `auto` spreads one model over all GPUs, in place of `device`.
        attn_implementation: `eager` (works with every estimator) or `sdpa`.
    """

    dtype: Annotated[str, Flag(panel=LOADING)] = "float32"
    device: Annotated[str, Flag(panel=LOADING)] = "auto"
    device_map: Annotated[str | None, Flag(panel=LOADING, metavar="auto")] = None
    attn_implementation: Annotated[str, Flag(panel=LOADING)] = "eager"

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise UserError(f"no dtype {self.dtype!r}: choose from {', '.join(DTYPES)}")
        if self.device_map not in (None, *DEVICE_MAPS):
            known = ", ".join(DEVICE_MAPS)
            raise UserError(f"no --device-map {self.device_map!r}: choose from {known}")

    def placement(self) -> str:
        """Return the device that models are put on; `auto` is settled here.

        Raises:
            UserError: if this machine has no such device.
        """
        import torch

        if self.device != "auto":
            if not _is_there(self.device):
                there = ", ".join(_devices())
                raise UserError(f"no --device {self.device!r} here: choose from auto, {there}")
            return self.device
        if torch.cuda.is_available():
            # torchrun starts a worker for each GPU of a machine and tells it which is its own.
            rank = int(os.environ.get("LOCAL_RANK", 0))
            return f"cuda:{rank % torch.cuda.device_count()}"
        return "mps" if torch.backends.mps.is_available() and self.dtype != "float64" else "cpu"


def _devices() -> list[str]:
    """Return the devices of this machine that models can be put on."""
    import torch

    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    numbered = [f"cuda:{number}" for number in range(gpus)]
    apple = ["mps"] if torch.backends.mps.is_available() else []
    return ["cpu", *(["cuda"] if gpus else []), *numbered, *apple]


def _is_there(name: str) -> bool:
    """Return whether a device is one of this machine's, in torch's spelling."""
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        return False
    known = _devices()
    # The other kinds have one device each, which may be written with its number as well.
    return str(device) in known or (device.type in known and device.index == 0)


def parse_batch_size(text: str | int) -> int | None:
    """Return the number of prompts at a time; None for `auto`.

    Args:
        text: what was typed.

    Raises:
        UserError: if it is neither `auto` nor a number from 1 on.
    """
    if text == "auto":
        return None
    if not str(text).isdecimal() or int(text) < 1:
        raise UserError(f"--batch-size {text!r}: give auto, or 1 or more")
    return int(text)


BATCH_SIZE = Flag(
    panel=LOADING, metavar="auto|N", typed=str, default="auto", convert=parse_batch_size
)


def leaves(
    record: Mapping[str, Any], ignored: Collection[str] = (), prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the settings of a record by dotted name; a section that is None has none.

    Args:
        record: sections, which may hold further sections.
        ignored: names inside a section that are recorded and not compared.
        prefix: of the names.

    Yields:
        Name and value, tuples as the lists that JSON makes of them.
    """
    for key, value in record.items():
        if prefix and key in ignored:
            continue
        if isinstance(value, Mapping):
            yield from leaves(value, ignored, f"{prefix}{key}.")
        elif prefix or value is not None:
            yield f"{prefix}{key}", list(value) if isinstance(value, tuple) else value


def require_same_settings(
    folder: object,
    done: str,
    before: Mapping[str, Any],
    now: Mapping[str, Any],
    *,
    both: bool = False,
    names: Callable[[str], str] = str,
    instead: str = "give another --output-dir, or --overwrite",
) -> None:
    """Raise if a setting contradicts what a folder or a file has.

    Args:
        folder: it, for the message.
        done: what was done there, such as `measured`.
        before: the folder's settings, by dotted name.
        now: those asked for.
        both: whether a setting that only one of them has is a contradiction too, as None.
        names: what a setting is called in the message.
        instead: what the message says to do.

    Raises:
        UserError: naming the first such setting with both values.
    """
    for name in [*now, *(before if both else ())]:
        compared = both or name in before
        if compared and not _same_value(before.get(name), now.get(name)):
            raise UserError(
                f"{folder} was {done} with {names(name)} = {_short(before.get(name))}, now it is "
                f"{_short(now.get(name))}: {instead}"
            )


def _short(value: Any) -> str:
    """Return a value as a message shows it, cut where it is long, such as all prompts' tokens."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}…"


def _same_value(before: Any, now: Any) -> bool:
    texts = isinstance(before, str) and isinstance(now, str)
    return before == now or (texts and same_identity(before, now))


def same_identity(recorded: str | None, now: str | None) -> bool:
    """Return whether two identities are of the same checkpoint.

    Args:
        recorded: one that a folder holds; before settings counted it was of the weights alone.
        now: what `checkpoints.identity` returns, or a GGUF file's digest, or a hub name.
    """
    if recorded is None or now is None:
        return recorded is now
    return recorded == now or (len(recorded) == 64 and now.startswith(f"{recorded}-"))


class _Loader(yaml.SafeLoader):
    """Reads `1e-4` as a number and `10:30`, `no` and `on` as text, unlike YAML 1.1."""

    def construct_yaml_int(self, node: Any) -> int:
        return int(self.construct_scalar(node))


_Loader.yaml_implicit_resolvers = {}
for _tag, (_pattern, _first) in _SCALARS.items():
    _whole = re.compile(rf"(?:{_pattern})\Z")
    _Loader.add_implicit_resolver(_tag, _whole, [c.replace("\0", "") for c in _first])
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Return what a user wrote as YAML, by the core schema of YAML 1.2.

    Args:
        text: a file's content or a value; what is no YAML is a `yaml.YAMLError`.
    """
    return yaml.load(text, Loader=_Loader)
