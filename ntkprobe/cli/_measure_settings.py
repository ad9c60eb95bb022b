"""The options of `ntkprobe measure` as the arguments of `measure_run`."""

import json
import sys
from pathlib import Path
from typing import Any

from .. import estimators, mitigations, plugins
from ..checkpoints import LoadSettings
from ..checkpoints.revisions import fetch_revisions
from ..errors import UserError, one_line
from ..measurement.influence.pair_files import read_recorded, read_updated, recorded_data
from ..prompts.unicode_text import flaw_within
from ..watcher import (
    ActivationSettings,
    Choice,
    Following,
    InfluenceSettings,
    KernelSettings,
    MeasureSettings,
    RefusalSettings,
    parse_shard,
    parse_steps,
)


def arguments(options: dict[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of `measure_run`.

    Args:
        options: the values of all flags, by name.

    Returns:
        Everything but the prompts.

    Raises:
        UserError: if flags contradict each other, or a value is not allowed.
    """
    run, model = options["ckpt_dir"], options["model"]
    if run is None and model is None:
        raise UserError("nothing to measure: give --ckpt-dir RUN, or --model MODEL, or both")
    if options["revisions"]:
        run, model = _fetched(run, model, options["revisions"]), None
    return {
        "ckpt_dir": run,
        "model": model,
        "output_dir": options["output_dir"] or _beside(run, model, options["mitigation"]),
        "settings": _settings(options),
        "choice": Choice(
            steps=parse_steps(options["steps"]) if options["steps"] else (),
            shard=parse_shard(options["shard"]),
        ),
        "following": _following(options),
        "overwrite": options["overwrite"],
        "report_to": options["report_to"] or (),
        "about": {"argv": sys.argv[1:]},
    }


def _fetched(run: Path | None, model: str | None, revisions: str) -> Path:
    """Return the run that a model's revisions make, `NAME-revisions` here, fetched from the hub.

    Raises:
        UserError: if they are of no model on the hub, or cannot be had.
    """
    if run is not None or model is None or Path(model).exists():
        raise UserError("--revisions are those of a model on the hub: give --model NAME, no folder")
    place = Path(Path(model).name + "-revisions")
    names = [name.strip() for name in revisions.split(",") if name.strip()]
    fetch_revisions(model, names, place)
    print(one_line(f"{len(names)} revisions of {model} are in {place}"), file=sys.stderr)
    return place


def _beside(run: Path | None, model: str | None, mitigation: Path | None) -> Path:
    """Return `RUN-ntk`, or `NAME-ntk` here for a model alone; `RUN-M-ntk` under a mitigation M."""
    end = f"-{mitigation.resolve().name}-ntk" if mitigation else "-ntk"
    if run is not None:
        place = run if run.name not in ("", "..") else run.resolve()
        return place.with_name(place.name + end)
    return Path(Path(str(model)).name + end)


def _settings(options: dict[str, Any]) -> MeasureSettings:
    """Return how to measure."""
    plugins.load(estimators, options["estimator"])
    kernel = KernelSettings(
        estimator=options["estimator"],
        parameters=options["parameters"],
        by=options["by"],
        top_k=options["top_k"],
        top_k_at=options["top_k_at"],
        tokens=_tokens(options["tokens"]),
        full_vocabulary=options["full_vocabulary"],
        random_probes=options["random_probes"],
        keep_blocks=options["keep_blocks"],
        per_group=options["per_group"] or None,
        seed=options["seed"],
    )
    asked = _asked(options)
    layers = ActivationSettings.parse(options["layers"] or "all")
    refusal = RefusalSettings(
        generate=not options["no_generate"],
        max_new_tokens=options["max_new_tokens"],
        exact_phrases=options["exact_phrases"],
    )
    load = {
        name: options[name] for name in ("dtype", "device", "device_map", "attn_implementation")
    }
    return MeasureSettings(
        kernel=kernel if "kernel" in asked else None,
        refusal=refusal if "refusal" in asked else None,
        activations=layers if "activations" in asked else None,
        influence=_influence(options) if "influence" in asked else None,
        template=options["template"],
        max_length=options["max_length"],
        load=LoadSettings(**load),
        batch_size=_batch_size(options["batch_size"]),
        verify=options["verify"],
        mitigation=options["mitigation"].resolve() if options["mitigation"] else None,
    )


def _asked(options: dict[str, Any]) -> set[str]:
    """Return what is to be measured: by default kernel and refusal, and what a flag is about.

    Raises:
        UserError: if `--only` names something else, or contradicts another flag.
    """
    about = {"layers": "activations", "influence": "influence"}
    extra = {kind: flag for flag, kind in about.items() if options[flag]}
    only = options["only"]
    decodes = _decodes(options["mitigation"])
    if only is None and decodes:
        print(
            f"{options['mitigation']} is a decoding method, which has no kernel of its own: "
            "refusal alone is measured",
            file=sys.stderr,
        )
    usual = {"refusal"} if decodes else {"kernel", "refusal"}
    asked = {*usual, *extra} if only is None else set(only.replace(" ", "").split(","))
    if unknown := sorted(asked - {"kernel", "refusal", *about.values()}):
        raise UserError(
            f"no --only {unknown[0]!r}: choose from kernel, refusal, activations and influence,"
            " joined by ,"
        )
    if left_out := sorted(set(extra) - asked):
        kind = left_out[0]
        raise UserError(f"--{extra[kind]} is about {kind}: give --only {only},{kind}")
    if decodes and "influence" in asked:
        raise UserError("a decoding method has no influence of its own: leave out --influence")
    if "influence" not in asked and (options["updated"] or options["answer"]):
        raise UserError("--updated and --answer go with --influence refusal")
    return asked


def _influence(options: dict[str, Any]) -> InfluenceSettings:
    """Return which pairs' influence is measured; on standard error, where they are from.

    Raises:
        UserError: if no pairs are known.
    """
    path = options["updated"]
    if path is not None:
        updated = read_updated(path, options["answer"])
    else:
        path = recorded_data(options["ckpt_dir"])
        if path is None:
            raise UserError(
                "--influence needs the pairs that are learnt: give --updated FILE (columns prompt"
                " and response), since no data.parquet lies beside the checkpoints"
            )
        updated = read_recorded(path)
    settings = InfluenceSettings(
        updated=updated,
        target=options["influence"] or "refusal",
        loss=options["influence_loss"],
        parameters=options["influence_parameters"],
        per_group=options["per_group"] or None,
        seed=options["seed"],
    )
    print(one_line(f"updated pairs from {path}: {settings.sample().describe()}"), file=sys.stderr)
    return settings


def _decodes(mitigation: Path | None) -> bool:
    """Return whether there is a mitigation that changes the distribution, not the activations."""
    return mitigation is not None and mitigations.load(mitigation).kind == "decoding"


def _batch_size(spec: str) -> int | None:
    """Return the number of prompts at a time; None for `auto`.

    Raises:
        UserError: if it is neither.
    """
    if spec == "auto":
        return None
    if not str(spec).isdigit() or int(spec) < 1:
        raise UserError(f"--batch-size {spec!r}: give auto, or 1 or more")
    return int(spec)


def _tokens(path: Path | None) -> tuple[int | str, ...] | None:
    """Return the tokens in a JSON list of vocabulary ids or of texts.

    Raises:
        UserError: if the file holds no such list.
    """
    if path is None:
        return None
    try:
        values = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--tokens {path} cannot be read as JSON: {error}") from error
    if not isinstance(values, list) or not values or {type(v) for v in values} - {int, str}:
        raise UserError(f'--tokens {path}: give a list of ids or texts, such as ["I", "Sure"]')
    if flaw := flaw_within(values):
        raise UserError(f"--tokens {path} {flaw}")
    return tuple(values)


def _following(options: dict[str, Any]) -> Following | None:
    """Return how to wait for checkpoints, if at all.

    Raises:
        UserError: if there is nothing to follow.
    """
    if not options["follow"]:
        if options["until_step"] is not None or options["idle_timeout"] is not None:
            raise UserError("--until-step and --idle-timeout go with --follow")
        return None
    if options["ckpt_dir"] is None:
        raise UserError("--follow needs the run to follow: give --ckpt-dir RUN")
    return Following(
        poll_interval=options["poll_interval"],
        idle_timeout=options["idle_timeout"],
        until_step=options["until_step"],
    )
