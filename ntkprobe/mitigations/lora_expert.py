"""A LoRA adapter that is active during single forward passes: W + s·BA by hooks.

peft's `load_adapter` and `set_adapter` need a `PeftModel`: they replace modules of the model and
change `requires_grad`, which a mitigation must leave as they are. Hooks change neither.
"""

import math
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from ..checkpoints.attaching import plain_lora
from ..checkpoints.completeness import ADAPTER, require_safetensors
from ..checkpoints.headers import Incomplete, regular_file
from ..errors import UserError, one_line
from ..models.architecture import Hook, hooked

_PREFIX = "base_model.model."


@dataclass(frozen=True, eq=False)
class Expert:
    """The update that an adapter adds to modules of the base model.

    Attributes:
        changes: by module name, (A `[r, in]`, B `[out, r]`, scale s).
    """

    changes: dict[str, tuple[Tensor, Tensor, float]]

    @classmethod
    def of(cls, model: nn.Module, folder: str | Path) -> "Expert":
        """Return the expert in an adapter's folder.

        Args:
            model: the model whose base it was trained on, with an adapter or not.
            folder: `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            UserError: if there is no adapter, it is not plain LoRA, or it fits another model.
        """
        if not str(folder):
            raise UserError("SafeDecoding has no expert: set expert to a LoRA adapter's folder")
        place = Path(folder)
        config = _plain_lora(place)
        tensors = _read(place)
        ends = (".lora_A.weight", ".lora_B.weight")
        names = {key.removeprefix(_PREFIX).rpartition(".lora_")[0] for key in tensors}
        if odd := sorted(key for key in tensors if not key.endswith(ends)):
            raise UserError(f"the expert {place.name} has {odd[0]}: only plain LoRA can be used")
        modules = dict(_base(model).named_modules())
        changes = {}
        for name in sorted(names):
            a, b = (tensors.get(f"{_PREFIX}{name}{end}") for end in ends)
            if a is None or b is None or not _fits(modules.get(name), a, b):
                raise UserError(
                    f"the expert {place.name} fits another model ({name}): train it on this one"
                )
            changes[name] = (a, b, _scale(config, name, a.shape[0]))
        return cls(changes)

    @contextmanager
    def active(self, model: nn.Module) -> Generator[None]:
        """Activate the expert, in place of the model's own adapter, while the block lasts."""
        modules = dict(_base(model).named_modules())
        with (
            _without_adapter(model),
            hooked((modules[n], _added(*change)) for n, change in self.changes.items()),
        ):
            yield


def _plain_lora(place: Path) -> Any:
    """Return the configuration of an adapter that is nothing but ΔW = s·BA.

    Raises:
        UserError: for another kind, or what changes more than that.
    """
    from peft import PeftConfig

    require_safetensors(place, ADAPTER)
    try:
        regular_file(place / ADAPTER)
        config: Any = PeftConfig.from_pretrained(str(place), local_files_only=True)
    except (Incomplete, OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"no LoRA adapter in {place}: {one_line(error)}") from error
    plain = (
        getattr(config, "bias", "") == "none" and not config.modules_to_save and plain_lora(config)
    )
    if not plain:
        raise UserError(
            f"the expert {place.name} is no plain LoRA (no DoRA, bias, modules_to_save or special "
            "initialisation): train it with peft's defaults"
        )
    return config


def _read(place: Path) -> dict[str, Tensor]:
    # load(bytes), not load_file: a memory-mapped file that shrinks kills the process.
    try:
        tensors = load((place / ADAPTER).read_bytes())
    except (OSError, SafetensorError) as error:
        raise UserError(f"the expert {place.name} cannot be read: {one_line(error)}") from error
    if broken := [name for name, value in tensors.items() if not bool(value.isfinite().all())]:
        raise UserError(f"the expert {place.name} holds NaN or infinity in {broken[0]}")
    return tensors


def _base(model: Any) -> nn.Module:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _fits(module: nn.Module | None, a: Tensor, b: Tensor) -> bool:
    plain: Any = getattr(module, "base_layer", module)  # another adapter may be around it
    weight = getattr(plain, "weight", None)
    if weight is None or a.shape[0] != b.shape[1]:
        return False
    shape = (b.shape[0], a.shape[1])
    # GPT-2's Conv1D keeps its weights transposed.
    return tuple(weight.shape) == (shape if isinstance(plain, nn.Linear) else shape[::-1])


def _scale(config: Any, name: str, rank: int) -> float:
    from peft.utils.other import get_pattern_key

    key = get_pattern_key(config.alpha_pattern.keys(), name)
    alpha = config.alpha_pattern.get(key, config.lora_alpha)
    return alpha / (math.sqrt(rank) if config.use_rslora else rank)


def _added(a: Tensor, b: Tensor, scale: float) -> Hook:
    def add(module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x = inputs[0]
        down = nn.functional.linear(x, a.to(x))
        return output + scale * nn.functional.linear(down, b.to(x))

    return add


@contextmanager
def _without_adapter(model: nn.Module) -> Generator[None]:
    """Switch a model's own adapter off; peft's own switch would also set requires_grad."""
    layers = [module for module in model.modules() if hasattr(module, "_disable_adapters")]
    before = [layer._disable_adapters for layer in layers]
    try:
        for layer in layers:
            layer._disable_adapters = True  # type: ignore[assignment]
        yield
    finally:
        for layer, was in zip(layers, before, strict=True):
            layer._disable_adapters = was
