"""A fitted method on disk: `mitigation.json`, and `mitigation.safetensors` for what it learned."""

from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import plugins
from ..checkpoints import named_identity
from ..checkpoints.completeness import require_safetensors
from ..checkpoints.headers import Incomplete, read_json, regular_file
from ..errors import UserError
from ..storage import SCHEMA_VERSION, require_schema, write_json, write_tensors
from .base import Mitigation, checked_settings, learned_by, require_same_model, settings_of

JSON_NAME = "mitigation.json"
TENSORS_NAME = "mitigation.safetensors"


def save(mitigation: Mitigation, folder: str | Path, *, template_date: str | None = None) -> Path:
    """Write a method, settings and what it learned; an earlier one in the folder is replaced.

    Args:
        mitigation: fitted, or one that learns nothing.
        folder: where to; it is created.
        template_date: the day that the template printed in the prompts it was fitted on, if any;
            for the record.

    Returns:
        The folder.
    """
    place = Path(folder)
    found = {name: getattr(mitigation, name) for name in learned_by(mitigation)}
    tensors = {
        name: value.detach().cpu().contiguous()
        for name, value in found.items()
        if isinstance(value, Tensor)
    }
    # First: a call that is stopped here must not leave an earlier method beside these tensors.
    for name in (JSON_NAME, TENSORS_NAME):
        (place / name).unlink(missing_ok=True)
    if tensors:
        write_tensors(place / TENSORS_NAME, tensors)
    about = {
        "schema_version": SCHEMA_VERSION,
        "method": method_name(mitigation),
        "settings": {name: getattr(mitigation, name) for name in settings_of(mitigation)},
        "learned": {n: v for n, v in found.items() if v is not None and n not in tensors},
        "tensors": sorted(tensors),
        **({"template_date": template_date} if template_date else {}),
    }
    write_json(place / JSON_NAME, about)  # last: a folder without it holds no method
    return place


def load(folder: str | Path, model: nn.Module | None = None) -> Mitigation:
    """Return the method that `save` wrote.

    Args:
        folder: what `save` was given.
        model: the model it is for, if it is to be checked now rather than when it is applied.

    Returns:
        The method, its tensors on the CPU.

    Raises:
        UserError: if the folder holds no complete method, or it was fitted on another model.
    """
    place = Path(folder)
    about = _read_about(place)
    kind = mitigation_class(str(about.get("method")))
    settings = checked_settings(kind, about["settings"])
    found = {**about["learned"], **_read_tensors(place, about["tensors"])}
    if unknown := sorted(set(found) - set(learned_by(kind))):
        raise UserError(f"{place}: {about['method']} learns no {unknown[0]!r}: fit it again")
    if about["tensors"] and not isinstance(found.get("fitted_on"), dict):
        raise UserError(f"{place} does not say which model it was fitted on: fit it again")
    mitigation = kind(**settings, **found)
    if model is not None:
        require_same_model(mitigation, model)
    return mitigation


def mitigation_class(name: str) -> type[Mitigation]:
    """Return the class of the method of that name, a `UserError` if there is none."""
    # By its name: the package itself imports from this module.
    return plugins.load(import_module(str(__package__)), name)


def method_name(mitigation: Mitigation) -> str:
    """Return the name of a method: its module's."""
    return type(mitigation).__module__.rpartition(".")[2]


def digest(folder: str | Path) -> str:
    """Return `METHOD#` and 12 hexadecimal digits of a SHA-256 of a folder's method.

    The models that its settings name are part of it.
    """
    place = Path(folder)
    about, whole = _read_about(place), sha256()
    for name in (JSON_NAME, TENSORS_NAME):
        if (place / name).is_file():
            whole.update((place / name).read_bytes())
    for name in mitigation_class(str(about.get("method"))).models:
        model = about["settings"].get(name) or ""
        whole.update((named_identity(model) or model).encode())  # on the hub it is its name
    return f"{about.get('method')}#{whole.hexdigest()[:12]}"


def _read_about(place: Path) -> dict[str, Any]:
    try:
        about = read_json(place / JSON_NAME)
    except Incomplete as error:
        raise UserError(
            f"{place} holds no mitigation ({error}): make one with ntkprobe mitigate fit"
        ) from error
    # Every file of ours says its form: one that does not is as unreadable as another's.
    require_schema({"schema_version": None, **about}, place / JSON_NAME, "fit the mitigation again")
    shapes = {"settings": dict, "learned": dict, "tensors": list}
    if broken := [key for key, kind in shapes.items() if not isinstance(about.get(key), kind)]:
        raise UserError(f"{place / JSON_NAME} has no {broken[0]}: fit the mitigation again")
    return about


def _read_tensors(place: Path, names: list[str]) -> dict[str, Tensor]:
    if not names:
        return {}
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = place / TENSORS_NAME
    require_safetensors(place, TENSORS_NAME)
    try:
        regular_file(path)
        tensors = load_file(path)
    except (Incomplete, SafetensorError, OSError) as error:
        raise UserError(f"{path} cannot be read ({error}): fit the mitigation again") from error
    if missing := sorted(set(names) - set(tensors)):
        raise UserError(f"{path} lacks {missing}: fit the mitigation again")
    if unknown := sorted(set(tensors) - set(names)):
        raise UserError(f"{path} holds {unknown} besides what {JSON_NAME} names: fit it again")
    if broken := [name for name in names if not bool(torch.isfinite(tensors[name]).all())]:
        raise UserError(f"{path}: {broken[0]} is not finite: fit the mitigation again")
    return {name: tensors[name] for name in names}
