"""Stages: named models in an order, such as a base model, its SFT and its DPO. Loads no torch.

A run has checkpoints with steps; what people publish of post-training are a few models with names.
A stage is such a model; its place in the order, from 0, stands where a run has the step.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import UserError
from .settings import same_identity

if TYPE_CHECKING:
    import pandas as pd

_NAME = re.compile(r"[^\s.=/\\:][^=/\\:]{0,59}")

Record = Mapping[str, Any]
"""A stage in `run.json`: `name, model, identity, base, base_identity, architecture, template,
tokens, same_vocabulary`; what is not known, since it could not be read, is missing."""


@dataclass(frozen=True)
class Stage:
    """A named model.

    Attributes:
        name: as in tables and figures.
        model: a folder, a hub name, a GGUF file, or an adapter.
        template: as for `--template`; `auto` is the tokenizer's chat template, else `plain`.
    """

    name: str
    model: str
    template: str = "auto"

    def __post_init__(self) -> None:
        written = _NAME.fullmatch(self.name) and self.name.isprintable()
        if not written or self.name != self.name.strip():
            raise UserError(
                f"no stage can be called {self.name!r}: a name has 1 to 60 characters, none of "
                "them = / \\ or :, and does not begin with a dot"
            )
        if not self.model:
            raise UserError(f"the stage {self.name} has no model: write {self.name}=MODEL")

    @property
    def adapter(self) -> Path | None:
        """The folder of its adapter, if it is one."""
        folder = Path(self.model)
        return folder if (folder / "adapter_config.json").is_file() else None


def parse_stages(stages: Sequence[str], templates: Sequence[str] = ()) -> tuple[Stage, ...]:
    """Return the stages that `--stage NAME=MODEL` and `--template [NAME=]SPEC` ask for.

    Args:
        stages: in order.
        templates: of all stages, or of the one named.

    Returns:
        The stages.

    Raises:
        UserError: if one has no name or model, a name is given twice, or a template is no stage's.
    """
    named = [_parted(word) for word in stages]
    names = [name for name, _ in named]
    common, own = "auto", dict[str, str]()
    for word in templates:
        name, equals, spec = word.partition("=")
        if equals and name in names:
            if name in own:
                raise UserError(f"two templates for the stage {name}: give one")
            own[name] = spec
        elif equals and not Path(word).exists():
            raise UserError(f"--template {word}: no stage is called {name!r}: choose from {names}")
        else:
            common = word
    found = tuple(Stage(name, model, own.get(name, common)) for name, model in named)
    require_distinct(found)
    return found


def only_template(templates: Sequence[str] | None) -> str:
    """Return the `--template` of one model: `auto` where none is given.

    Args:
        templates: those given.

    Raises:
        UserError: if there are several.
    """
    given = list(templates or ["auto"])
    if len(given) > 1:
        raise UserError(f"--template {' and '.join(given)}: one model has one, give one")
    return given[0]


def require_distinct(stages: Sequence[Stage]) -> None:
    """Raise unless every stage has a name of its own; upper and lower case make no difference.

    Args:
        stages: one or more.

    Raises:
        UserError: naming the stage, or if there are none.
    """
    if not stages:
        raise UserError("no stages: give --stage NAME=MODEL, once for each")
    seen: dict[str, Stage] = {}
    for stage in stages:
        first = seen.setdefault(stage.name.casefold(), stage)
        if first is not stage:
            raise UserError(
                f"two stages are called {stage.name!r}, {first.model} and {stage.model}: "
                "give each a name of its own"
            )


def with_stage(table: "pd.DataFrame", names: Mapping[int, str]) -> "pd.DataFrame":
    """Return a table with the name of each row's stage behind `step`, as an ordered category.

    Args:
        table: with a column `step`.
        names: of the stages, by step; without any the table stays as it is.

    Returns:
        The table, with `stage`.
    """
    import pandas as pd

    if not names:
        return table
    values = pd.Categorical(table["step"].map(names), list(names.values()), ordered=True)
    ordered = pd.Series(values, index=table.index)
    named = table.drop(columns="stage", errors="ignore")
    named.insert(list(named.columns).index("step") + 1, "stage", ordered)
    return named


def _parted(word: str) -> tuple[str, str]:
    """Return name and model of `NAME=MODEL`.

    Raises:
        UserError: if it is none.
    """
    name, equals, model = word.partition("=")
    if not equals:
        raise UserError(f"--stage {word}: give NAME=MODEL, such as --stage base=MODEL")
    return name.strip(), model.strip()


def united(folder: object, old: Sequence[Record], new: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the stages of a folder with those of this call: the same ones, and more at the end.

    Args:
        folder: for the message.
        old: what the folder has.
        new: what is asked for now; fewer are no contradiction.

    Returns:
        Old and new entries together, the new ones' first.

    Raises:
        UserError: if a stage contradicts the one at its place.
    """
    shared = min(len(old), len(new))
    before, now = ([one["name"] for one in stages] for stages in (old, new))
    if before[:shared] != now[:shared]:
        raise UserError(
            f"{folder} was measured with the stages {', '.join(before)}, now they are "
            f"{', '.join(now)}: a further stage goes behind them; for others give another "
            "--output-dir, or --overwrite"
        )
    pairs = [_one(folder, *pair) for pair in zip(old, new, strict=False)]
    return [*pairs, *(dict(one) for one in (*old[shared:], *new[shared:]))]


def _one(folder: object, old: Record, new: Record) -> dict[str, Any]:
    """Return one stage with what is known of it from both.

    Raises:
        UserError: if these are two.
    """
    if new.get("identity") is None:  # it cannot be loaded now, and keeps what it was
        return dict(old) if old.get("identity") else dict(new)
    for key, what in (("identity", "model"), ("base_identity", "base"), ("tokens", "template")):
        if key not in new:  # a plan has no tokens
            continue
        before, now = old.get(key), new[key]
        # The same weights elsewhere are the same model, and other weights there its next version.
        adapted = key == "base_identity" and new["identity"] != new["base_identity"]
        moved = key == "tokens" or adapted or old.get(what) != new[what]
        alike = before == now or (key != "tokens" and same_identity(before, now))
        if before is not None and not alike and moved:
            names = [repr(each.get(what)) for each in (old, new)]
            differ = "" if names[0] != names[1] else ", which was changed since"
            raise UserError(
                f"{folder} was measured with the stage {new['name']} from the {what} {names[0]}, "
                f"now it is {names[1]}{differ}: give another --output-dir, or --overwrite"
            )
    return {**old, **new}


def differences(before: Record, now: Record) -> list[str]:
    """Return what differs between two stages besides training, a line each.

    Args:
        before: a stage's entry in `run.json`.
        now: the next one's.
    """
    lines, pair = [], f"{before['name']} and {now['name']}"
    alike = before["same_vocabulary"] and now["same_vocabulary"]  # else tokens say nothing
    if before["tokens"] != now["tokens"] if alike else before["template"] != now["template"]:
        names = [before["template"], now["template"]]
        how = f"{names[0]}, {names[1]}" if names[0] != names[1] else f"two kinds of {names[0]}"
        lines.append(
            f"{pair} have different templates ({how}): a difference between them mixes the "
            "template with training"
        )
    kinds = [before["architecture"], now["architecture"]]
    if None not in kinds and kinds[0] != kinds[1]:
        lines.append(
            f"{pair} have different architectures ({kinds[0]}; {kinds[1]}): training alone does "
            "not make one of the other"
        )
    return lines
