"""Splits of the prompts: drawn once, by a hash of the text; the sets are disjoint.

The sets are written as files into OUT/data, which every later stage reads; a seed only draws from
the training sets.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..prompts.phrases import PHRASE_SETS
from ..prompts.prompt_set import normalised
from ..storage import replacing
from ..training.data import Pair
from .data_files import OVER_REFUSAL_SETS, SAFETY_SETS, read_file
from .settings import Scale

YES_NO = frozenset(
    "is are was were am do does did can could will would shall should has have had may might must"
    " isn't aren't don't doesn't didn't can't won't".split()
)
"""Words that a yes-or-no question begins with."""

UNIFORM = "random_9k"
"""What marks, in a union of several selections of Alpaca, the rows that were drawn at random."""

REFUSING = tuple(phrase.lower() for phrase in PHRASE_SETS["union"])
Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class Splits:
    """The sets in OUT/data, each a JSONL file with `prompt`, and `response` or `group`."""

    folder: Path

    def path(self, name: str) -> Path:
        """Return where a set is."""
        return self.folder / f"{name}.jsonl"

    def rows(self, name: str) -> Rows:
        """Return the rows of a set."""
        lines = self.path(name).read_text("utf-8").splitlines()
        return [json.loads(line) for line in lines]

    def pairs(self, name: str) -> list[Pair]:
        """Return a set of pairs."""
        return [Pair(row["prompt"], row["response"]) for row in self.rows(name)]

    def number(self, name: str, asked: int) -> int:
        """Return how many of so many rows asked for a set has; all, before it is written."""
        return min(asked, len(self.rows(name))) if self.path(name).is_file() else asked


def is_yes_no(prompt: str) -> bool:
    """Return whether a prompt is a question to be answered with yes or no, by its first word."""
    words = normalised_words(prompt)
    return bool(words) and words[0] in YES_NO


def normalised_words(prompt: str) -> list[str]:
    """Return a prompt's words in lower case, without quotes before the first."""
    return prompt.strip().strip("\"'“”").lower().replace("’", "'").split()


def begins_with_refusal(answer: str) -> bool:
    """Return whether an answer begins with one of XSTest's prefixes or the paper's phrases."""
    return answer.lower().strip().replace("’", "'").startswith(REFUSING)


def make_splits(folder: Path, places: Mapping[str, Path], scale: Scale) -> Splits:
    """Write all sets, once.

    Args:
        folder: OUT/data.
        places: where the published files are.
        scale: how many of each.

    Returns:
        The sets.

    Raises:
        UserError: if a file holds too few prompts.
    """  # ruff: ignore[docstring-extraneous-exception]
    for name, rows in draw_sets(places, scale).items():
        with replacing(folder / f"{name}.jsonl") as hidden:
            hidden.write_text(
                "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8"
            )
    return Splits(folder)


def draw_sets(places: Mapping[str, Path], scale: Scale) -> dict[str, Rows]:
    """Return every set by its name.

    Args:
        places: where the published files are.
        scale: how many of each.

    Raises:
        UserError: if a file has another form or too few prompts, or a prompt is in two sets.
    """  # ruff: ignore[docstring-extraneous-exception]
    published = {
        name: published_rows(name, read_file(name, places))[: scale.limit]
        for name in (*SAFETY_SETS, "oktest", "coconot_contrast")
    }
    xstest = published_rows("xstest", read_file("xstest", places))
    safe = [row for row in xstest if row["kind"] == "safe"][: scale.limit]
    unsafe = [row for row in xstest if row["kind"] == "unsafe"]
    seemingly, toxic, normal = scale.along
    taken = {normalised(r["prompt"]) for rows in (*published.values(), xstest) for r in rows}
    refusals = Drawer("safety", _pairs(read_file("safety", places), refusing=True), taken)
    alpaca = Drawer("Alpaca", _pairs(_uniform(read_file("alpaca", places))), taken)
    contrast = [row for row in published["coconot_contrast"] if "safety" in row["type"].lower()]
    asked = [
        *_group("seemingly_toxic", Drawer("CoCoNot", _open(contrast)).take(seemingly)),
        *_group("toxic", Drawer("XSTest", _open(unsafe)).take(toxic)),
        *_group("normal", alpaca.take(normal, short=True)),
    ]
    sets = {
        **published,
        "xstest": [*safe, *unsafe[: scale.limit]],
        "dcr": [
            *_group("seemingly_toxic", safe),
            *_group("toxic", refusals.take(scale.dcr_toxic)),
        ],
        "along": asked,
        "xstest_kernel": [
            *_group("seemingly_toxic", Drawer("XSTest", safe).take(scale.kernel)),
            *_group("toxic", Drawer("XSTest", unsafe).take(scale.kernel)),
            *[row for row in asked if row["group"] == "normal"][: scale.kernel],
        ],
        "development": [
            *_group("toxic", refusals.take(scale.development)),
            *_group("normal", alpaca.take(scale.development)),
        ],
        "normal": [{**row, "kind": "safe"} for row in alpaca.take(scale.normal)],
        "refusals": refusals.rest(),
        "general": alpaca.rest(),
        # Of `general`: the methods may be fitted on normal prompts that SFT draws as well.
        "fit_normal": _group("normal", alpaca.take(scale.anchors)),
    }
    _require_disjoint(sets)
    return sets


class Drawer:
    """Rows in the order of a hash of their text; `take` returns each once."""

    def __init__(
        self, name: str, rows: Iterable[dict[str, Any]], taken: Iterable[str] = ()
    ) -> None:
        known = set(taken)
        self.name = name
        self.left: Rows = []
        for row in sorted(rows, key=lambda row: sha256(row["prompt"].encode()).digest()):
            if (key := normalised(row["prompt"])) not in known:
                known.add(key)
                self.left.append(row)

    def take(self, number: int, *, short: bool = False) -> Rows:
        """Return the next rows and remove them.

        Args:
            number: how many.
            short: only prompts of one line.

        Returns:
            The rows.

        Raises:
            UserError: if there are too few.
        """
        fit = [row for row in self.left if not short or "\n" not in row["prompt"]][:number]
        if len(fit) < number:
            raise UserError(
                f"{self.name} has too few prompts: {number} are wanted here, {len(fit)} are left"
            )
        taken = {id(row) for row in fit}
        self.left = [row for row in self.left if id(row) not in taken]
        return fit

    def rest(self) -> Rows:
        """Return the remaining rows, without removing them."""
        return self.left


def published_rows(name: str, rows: Rows) -> Rows:
    """Return a published set's rows: `id, prompt, kind, type`.

    Args:
        name: one of `data_files.FILES`.
        rows: of its file.

    Raises:
        UserError: if a label of XSTest is neither `safe` nor `unsafe`.
    """
    default = "unsafe" if name in SAFETY_SETS else "safe"
    kinds = [default] * len(rows)
    if name == "xstest":
        kinds = [str(row["label"]).strip() for row in rows]
    if other := sorted(set(kinds) - {"safe", "unsafe"}):
        raise UserError(f"XSTest has the label {other[0]!r}: it should be safe or unsafe")
    return [
        {
            "id": str(row.get("id") or number),
            "prompt": str(row.get("prompt") or row.get("goal") or row.get("text") or "").strip(),
            "kind": kind,
            "type": _type(name, row),
        }
        for number, (row, kind) in enumerate(zip(rows, kinds, strict=True), start=1)
    ]


def _uniform(rows: Rows) -> Rows:
    """Return the rows that are a uniform draw of Alpaca, where a union of selections says which."""
    if not any("files" in row for row in rows):
        return rows
    return [row for row in rows if UNIFORM in str(row.get("files"))]


def _type(name: str, row: Mapping[str, Any]) -> str:
    """Return what kind of question a row is."""
    if name == "oktest":
        return "yes or no" if is_yes_no(str(row["prompt"])) else "open"
    return str(row.get("type") or row.get("category") or "")


def _pairs(rows: Rows, *, refusing: bool = False) -> Rows:
    """Return rows with `prompt` and `response`; only refusals, if those are wanted."""
    made = []
    for row in rows:
        extra = str(row.get("input") or "").strip()
        prompt, response = str(row["instruction"] or "").strip(), str(row["output"] or "").strip()
        if prompt and response and (not refusing or begins_with_refusal(response)):
            made.append({"prompt": f"{prompt}\n{extra}" if extra else prompt, "response": response})
    return made


def _open(rows: Rows) -> Rows:
    """Return the rows that are no yes-or-no questions."""
    return [row for row in rows if not is_yes_no(row["prompt"])]


def _group(name: str, rows: Sequence[dict[str, Any]]) -> Rows:
    """Return prompts with their group; an answer is not that of the prompt measured."""
    return [{"prompt": row["prompt"], "group": name} for row in rows]


def _require_disjoint(sets: Mapping[str, Rows]) -> None:
    """Raise if a prompt is trained on, or chosen by, and measured as well.

    Raises:
        UserError: naming the sets.
    """
    trained = ("refusals", "general", "dcr", "development")
    measured = (*SAFETY_SETS, *OVER_REFUSAL_SETS, "along", "normal")
    known: dict[str, str] = {}
    for name in (*trained, *measured):
        for row in sets[name]:
            key = normalised(row["prompt"])
            other = known.setdefault(key, name)
            both_measured = name in measured and other in measured
            by_design = {name, other} == {"dcr", "xstest"}
            if other != name and not both_measured and not by_design:
                raise UserError(f"{row['prompt'][:60]!r} is in {other} and in {name}")
