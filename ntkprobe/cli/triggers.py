"""`ntkprobe triggers`: extract and answer the harmless parts of harmful prompts."""

import json
from contextlib import nullcontext
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import UserError
from ..settings import LOADING, Flag, LoadSettings
from ._options import SOME, SOURCE, command_of, config_defaults, quieten, report_line

if TYPE_CHECKING:
    from ..triggers.extraction import Example, Extraction, Trigger

RULE, LLM, INFLUENCE, ANSWERS = "Extractor rule", "Extractor llm", "Extractor influence", "Answers"
WITHOUT_MODEL = ("rule", "llm")
"""Extractors whose findings do not depend on the model, which only answers."""


@dataclass(frozen=True, kw_only=True)
class TriggerOptions:
    """What `ntkprobe triggers` is asked for.

    Attributes:
        output_file: the file that triggers are written to.
        harmful: harmful training prompts, refused; may be repeated.
        extractor: `rule`, `llm` or `influence`.
        limit: only the first N harmful prompts.
        config: a YAML file with these options.
        overwrite: begin anew.
        words: a list of harmful words of your own.
        base_url: a server, as `http://HOST:PORT/v1`.
        llm: its model's name.
        concurrency: prompts at the same time.
        benign: prompts not to be refused; may be repeated.
        adapter: taken with it, as `RUN/checkpoint-20`.
        share: of a prompt's words, kept at most.
        per_group: benign prompts to draw of each group.
        seed: of that draw.
        answers: compliant answers: trigger and response.
        model: the model before training: answers, and is measured.
        max_new_tokens: at most so many tokens in an answer.
        template: `auto` (chat where the tokenizer has one), `chat`, `raw`, or a Jinja file.
        batch_size: answers at a time.
        dtype: `float32`, `float64`, `bfloat16` or `float16`.
        device: `auto`, `cpu`, `cuda`, `cuda:1`, `mps`.
    """

    output_file: Annotated[Path, Flag(metavar="T.jsonl")]
    harmful: Annotated[list[str] | None, Flag(metavar=SOURCE)] = None
    extractor: str = "rule"
    limit: int | None = None
    config: Annotated[Path | None, Flag(metavar="FILE", callback=config_defaults)] = None
    overwrite: bool = False
    words: Annotated[Path | None, Flag(panel=RULE, metavar="FILE")] = None
    base_url: Annotated[str | None, Flag(panel=LLM, metavar="URL")] = None
    llm: Annotated[str | None, Flag(panel=LLM, metavar="NAME")] = None
    concurrency: Annotated[int, Flag(panel=LLM)] = 8
    benign: Annotated[list[str] | None, Flag(panel=INFLUENCE, metavar=SOURCE)] = None
    adapter: Annotated[Path | None, Flag(panel=INFLUENCE, metavar="A")] = None
    share: Annotated[float, Flag(panel=INFLUENCE)] = 0.5
    per_group: Annotated[int, Flag(panel=INFLUENCE)] = 25
    seed: Annotated[int, Flag(panel=INFLUENCE)] = 0
    answers: Annotated[str | None, Flag(panel=ANSWERS, metavar=SOME)] = None
    model: Annotated[str | None, Flag(panel=ANSWERS)] = None
    max_new_tokens: Annotated[int, Flag(panel=ANSWERS)] = 256
    template: Annotated[str, Flag(panel=ANSWERS)] = "auto"
    batch_size: Annotated[int, Flag(panel=ANSWERS)] = 16
    dtype: Annotated[str, Flag(panel=LOADING)] = LoadSettings.dtype
    device: Annotated[str, Flag(panel=LOADING)] = LoadSettings.device

    def recorded(self) -> dict[str, Any]:
        """Return the options that findings depend on, for a call that goes on.

        Returns:
            Their values as JSON holds them, by name.
        """
        names = ["extractor", "words", "base_url", "llm", "benign", "adapter", "share", "per_group"]
        names.append("seed")
        if self.extractor not in WITHOUT_MODEL:
            names += ["model", "template", "dtype"]
        kept = {name: getattr(self, name) for name in names}
        return _contents(self) | {
            n: v if isinstance(v, list | float | int) else v and str(v) for n, v in kept.items()
        }


def _contents(options: TriggerOptions) -> dict[str, str]:
    """Return digests of what the options name: a file may be edited before a call goes on."""
    from ..checkpoints import named_identity
    from ..training.runs import located

    found: dict[str, str] = {}
    if options.extractor == "rule" and options.words and options.words.is_file():
        found["words_digest"] = sha256(options.words.read_bytes()).hexdigest()[:12]
    if options.extractor in WITHOUT_MODEL or not options.model:
        return found
    found["benign_digest"] = sha256(json.dumps(_benign(options)).encode()).hexdigest()[:12]
    for name, given in (("model", located(options.model)), ("adapter", options.adapter)):
        if given and (identity := named_identity(given)):
            found[f"{name}_digest"] = identity
    return found


@command_of(TriggerOptions)
def triggers(options: TriggerOptions) -> None:
    """Find the refusal triggers in harmful prompts, and pair them with compliant answers.

    The file is what `ntkprobe train sft --recipe refusal_trigger --triggers` reads. Stop it at any
    time: the same command goes on.
    """  # ruff: ignore[docstring-missing-exception]
    output = options.output_file
    if output.suffix != ".jsonl":
        raise UserError(f"--output-file {output}: give a name that ends in .jsonl")
    if options.limit is not None and options.limit < 1:
        raise UserError(f"--limit {options.limit}: give 1 or more")
    if output.exists() and not options.overwrite:
        raise UserError(f"{output} is there already: give another --output-file, or --overwrite")
    quieten()
    from ..prompts.rendering import dated
    from ..training.runs import located
    from ..triggers.extraction import Progress, describe, read_examples, write_triggers

    harmful = [located(file) for file in options.harmful or []]
    examples = read_examples(harmful)[: options.limit]
    progress = Progress(output, options.recorded())
    if options.overwrite:
        progress.clear()
    models = _Models(options)
    with dated(progress.day):
        found = _extraction(options, models, examples, progress)
        report_line(f"{options.extractor}: {describe(found.counts, found.reasons)}")
        kept = _answered(options, models, found)
    write_triggers(output, kept, options.extractor)
    progress.clear()
    typer.echo(
        f"{len(kept)} triggers of {len(examples)} harmful prompts: {output}; {_next(output, kept)}"
    )


class _Models:
    """The model and its tokenizer, loaded when they are first needed."""

    def __init__(self, options: TriggerOptions) -> None:
        self.options = options
        self._loaded: tuple[Any, Any] | None = None

    def get(self) -> tuple[Any, Any]:
        """Return model and tokenizer.

        Raises:
            UserError: if none was named.
        """
        from ..checkpoints import load_model, load_tokenizer
        from ..prompts.templates import resolve_template
        from ..training.runs import located

        if not self.options.model:
            raise UserError("no model: give --model, which answers and is measured")
        if self._loaded is None:
            settings = LoadSettings(
                dtype=self.options.dtype, device=self.options.device, attn_implementation="sdpa"
            )
            name = located(self.options.model)
            self._loaded = (
                load_model(name, settings),
                load_tokenizer(name, local=False),
            )
            for line in resolve_template(self._loaded[1], self.options.template).remarks(
                self._loaded[1]
            ):
                report_line(line)
        return self._loaded


def _extraction(
    options: TriggerOptions, models: _Models, examples: "list[Example]", progress: Any
) -> "Extraction":
    """Return the triggers that the extractor finds."""
    from .. import plugins
    from ..checkpoints.adapters import adapted
    from ..triggers import extractors
    from ..triggers.extraction import extract

    name = options.extractor
    kind = plugins.load(extractors, name)
    if name != "influence":
        return extract(kind(**_settings(options)), examples, progress)
    model, tokenizer = models.get()
    adapter = options.adapter
    around = adapted(model, adapter, merge=False) if adapter else nullcontext(model)
    with around as measured:
        settings = {
            "benign": _benign(options),
            "share": options.share,
            "template": options.template,
            "progress": True,
        }
        return extract(kind(measured, tokenizer, **settings), examples, progress)


def _settings(options: TriggerOptions) -> dict[str, Any]:
    """Return the settings of an extractor that needs no model in memory."""
    from ..evaluation.server import Server

    if options.extractor == "rule":
        return {"words": options.words and str(options.words)}
    if options.extractor != "llm":
        return {}
    if not (options.base_url and options.llm):
        return {"server": None}
    return {"server": Server(options.base_url, options.llm, options.concurrency)}


def _benign(options: TriggerOptions) -> list[str]:
    """Return a draw of the benign prompts: all that are not toxic."""
    from ..training.runs import located
    from ..triggers.extraction import read_benign

    prompts = read_benign([located(file) for file in options.benign or []])
    return [prompt.text for prompt in prompts.sample(options.per_group, options.seed)]


def _answered(options: TriggerOptions, models: _Models, found: "Extraction") -> "list[Trigger]":
    """Return the triggers with compliant answers; as they are, if nothing is to answer them.

    Raises:
        UserError: if all answers are refusals.
    """
    from ..triggers.answers import compliant, generated, read_answers, with_given_answers

    made = list(found.triggers)
    if not options.answers and not options.model:
        return made
    if options.answers:
        made = with_given_answers(made, read_answers(options.answers))
    if options.model:
        made = generated(
            *models.get(),
            made,
            template=options.template,
            max_new_tokens=options.max_new_tokens,
            batch_size=options.batch_size,
            progress=True,
        )
    kept, counts = compliant(made)
    report_line("answers: " + ", ".join(f"{number} {what}" for what, number in counts.items()))
    if not kept:
        raise UserError("no trigger has a compliant answer: give others with --answers FILE")
    return kept


def _next(output: Path, kept: "list[Trigger]") -> str:
    """Return what can be done now."""
    if not any(trigger.response for trigger in kept):
        return (
            "they have no answers yet: run the same command again with --overwrite and --model "
            "MODEL, or with --answers FILE"
        )
    return (
        f"next: ntkprobe train sft --model MODEL --recipe refusal_trigger --triggers {output} "
        "--safe FILE"
    )
