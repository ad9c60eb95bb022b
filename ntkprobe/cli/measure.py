"""`ntkprobe measure`: measure the eNTK and the refusal probability at every checkpoint of a run."""

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import UserError, one_line
from ._options import SOURCE, config_defaults, preset_defaults, quieten

Flag = typer.Option
WHAT = "What to measure"
HOW = "How models are loaded"
WHICH = "Which checkpoints"


def measure(
    ckpt_dir: Annotated[
        Path | None, Flag(metavar="RUN", help="A training run, or one checkpoint of it.")
    ] = None,
    prompts: Annotated[
        list[str] | None,
        Flag(metavar=SOURCE, help="CSV, JSONL, JSON or Parquet; may be repeated."),
    ] = None,
    model: Annotated[
        str | None, Flag(help="The base model, a folder or hub name: step 0, and below adapters.")
    ] = None,
    revisions: Annotated[
        str | None,
        Flag(
            metavar="step1000,…", help="With a hub --model: fetch these and measure them as a run."
        ),
    ] = None,
    output_dir: Annotated[
        Path | None, Flag(metavar="OUT", help="Where to.", show_default="RUN-ntk")
    ] = None,
    mitigation: Annotated[
        Path | None, Flag(metavar="M", help="What ntkprobe mitigate fit wrote, in force meanwhile.")
    ] = None,
    only: Annotated[
        str | None,
        Flag(metavar="WHAT", help="Only kernel, refusal, activations, influence; joined by ,."),
    ] = None,
    layers: Annotated[
        str | None,
        Flag(metavar="1,3,5|all", help="Keep the activations of these decoder blocks as well."),
    ] = None,
    influence: Annotated[
        str | None,
        Flag(metavar="refusal", help="Predict what learning each of some pairs does to refusals."),
    ] = None,
    updated: Annotated[
        str | None,
        Flag(metavar=SOURCE, help="These pairs (prompt, response); else the run's own data."),
    ] = None,
    answer: Annotated[
        str | None, Flag(help="The response of updated prompts that have none.")
    ] = None,
    influence_loss: Annotated[
        str, Flag(metavar="sum|mean|first_token", help="Of the answer's tokens.")
    ] = "sum",
    influence_parameters: Annotated[
        str, Flag(help="What a step moves: auto (lora for adapters, else all), or as below.")
    ] = "auto",
    estimator: Annotated[
        str, Flag(help="gram, finite_difference, forward_mode or dense.")
    ] = "gram",
    parameters: Annotated[
        str,
        Flag(help="all, lora, embed, below:L, last:N, norm, head, re:PATTERN, joined by +."),
    ] = "all",
    by: Annotated[str | None, Flag(metavar="layer", help="Keep the share of every layer.")] = None,
    top_k: Annotated[int, Flag(help="Size of a prompt's block: its most probable tokens.")] = 10,
    top_k_at: Annotated[
        str, Flag(metavar="each|first", help="Top tokens of each checkpoint, or of the first.")
    ] = "each",
    tokens: Annotated[
        Path | None, Flag(metavar="FILE", help="JSON list of the block's tokens instead.")
    ] = None,
    full_vocabulary: Annotated[
        bool, Flag("--full-vocabulary", help="Read every logit, exactly, instead of a block.")
    ] = False,
    random_probes: Annotated[
        int | None, Flag(metavar="R", help="Estimate that from R random weightings of the logits.")
    ] = None,
    keep_blocks: Annotated[
        bool, Flag("--keep-blocks", help="Keep the blocks, not only norms.")
    ] = False,
    per_group: Annotated[int, Flag(help="Prompts of each group in the kernel; 0 for all.")] = 25,
    seed: Annotated[int, Flag(help="Of the choice of prompts.")] = 0,
    limit: Annotated[
        int | None, Flag(help="Only the first N prompts of each group, to try things out.")
    ] = None,
    no_generate: Annotated[
        bool, Flag("--no-generate", help="Let the model answer nothing.")
    ] = False,
    max_new_tokens: Annotated[int, Flag(help="Of an answer.")] = 32,
    exact_phrases: Annotated[
        bool,
        Flag("--exact-phrases", help="Run also phrases that change log P(refuse) by < 1e-4."),
    ] = False,
    template: Annotated[
        str, Flag(help="auto (chat where the tokenizer has one), chat, raw, or a Jinja file.")
    ] = "auto",
    max_length: Annotated[int | None, Flag(help="Tokens of a prompt at most.")] = None,
    preset: Annotated[
        str | None,
        Flag(
            metavar="paper",
            help="As the paper, and where it is silent as its authors' code is said to do.",
            callback=preset_defaults,
            is_eager=True,
        ),
    ] = None,
    config: Annotated[
        Path | None,
        Flag(
            metavar="FILE", help="YAML with these options.", callback=config_defaults, is_eager=True
        ),
    ] = None,
    dtype: Annotated[str, Flag(help="float32, float64, bfloat16 or float16.")] = "float32",
    device: Annotated[str, Flag(help="auto, cpu, cuda, cuda:1, mps.")] = "auto",
    device_map: Annotated[
        str | None, Flag(metavar="auto", help="Spread one model over all GPUs.")
    ] = None,
    attn_implementation: Annotated[str, Flag(help="eager or sdpa.")] = "eager",
    batch_size: Annotated[
        str, Flag(metavar="auto|N", help="Prompts at a time; auto halves it when memory runs out.")
    ] = "auto",
    steps: Annotated[
        str | None, Flag(metavar="A:B:C", help="Only steps from A to B by C; joined by commas.")
    ] = None,
    shard: Annotated[
        str | None,
        Flag(
            metavar="i/n", help="Be worker i of n; taken from torchrun or a Slurm array by itself."
        ),
    ] = None,
    ray: Annotated[
        str | None,
        Flag(metavar="ADDRESS", help="Measure as tasks of this Ray cluster: HOST:PORT, or auto."),
    ] = None,
    follow: Annotated[
        bool, Flag("--follow", help="Wait for checkpoints of a run that trains.")
    ] = False,
    poll_interval: Annotated[float, Flag(help="With --follow: seconds between two looks.")] = 10.0,
    idle_timeout: Annotated[
        float | None, Flag(help="With --follow: stop after so many seconds without news.")
    ] = None,
    until_step: Annotated[int | None, Flag(help="With --follow: stop after this step.")] = None,
    verify: Annotated[
        bool,
        Flag(
            help="Compare the estimator with plain backward passes, and the base, the "
            "first and the last checkpoint with their files loaded anew."
        ),
    ] = True,
    report_to: Annotated[
        list[str] | None,
        Flag(metavar="tensorboard", help="Show group means there, in OUT; may be repeated."),
    ] = None,
    dry_run: Annotated[bool, Flag("--dry-run", help="Only list what would be measured.")] = False,
    overwrite: Annotated[bool, Flag("--overwrite", help="Forget what OUT holds.")] = False,
) -> int:
    """Measure the eNTK and the refusal probability at every checkpoint of a run.

    What OUT holds already is not measured again: run the same command to go on. Folders of
    checkpoints are only read; the base model, where it is known, counts as step 0.
    """  # ruff: ignore[docstring-missing-returns]
    return _measure(dict(locals()))


def _measure(options: dict[str, Any]) -> int:
    """Turn the options into one call, and end with one line.

    Returns:
        The exit status.

    Raises:
        UserError: if the call makes no sense.
    """
    from ..prompts.prompt_set import PromptSet

    if not options["prompts"]:
        raise UserError("no prompts: give --prompts FILE (columns prompt and group), or FILE=GROUP")
    prompts = PromptSet.from_files(options["prompts"])
    if options["limit"] is not None:
        prompts = _first_of_each_group(prompts, options["limit"])
    quieten()
    from ..watcher import measure_run
    from ._measure_settings import arguments

    call = arguments(options)
    if options["dry_run"]:
        from ..watcher import plan

        for line in plan(**call):
            typer.echo(line)
        return 0
    _tell(prompts.describe())
    call["about"]["trained_on"] = _trained_on(prompts, call["ckpt_dir"], call["model"])
    if options["model"] and not Path(options["model"]).exists():
        _tell(f"{options['model']} is no folder here: asking the Hugging Face hub")
    if options["ray"]:
        from ..watcher.cluster import measure_on_ray

        outcome = measure_on_ray(prompts, address=options["ray"], **call)
    else:
        outcome = measure_run(prompts, **call)
    typer.echo(one_line(outcome.closing_line()))
    return outcome.status


def _trained_on(prompts: Any, *models: Path | str | None) -> dict[str, Any] | None:
    """Return how many prompts the models were trained on, as far as it is recorded, and say so."""
    from ..evaluation.overlap import measured_overlap, training_prompts

    try:
        trained = training_prompts([Path(model) for model in models if model])
    except UserError as error:
        _tell(f"what was trained on is not known: {error}")
        return None
    found = measured_overlap(prompts, trained)
    if found and found["prompts"]:
        groups = ", ".join(f"{number} {group}" for group, number in found["groups"].items())
        runs = " and ".join(name for name, number in found["sources"].items() if number)
        _tell(
            f"{found['prompts']} of {found['of']} prompts measured were trained on ({groups}; by "
            f"{runs}): what they show may not hold for others"
        )
    return found


def _first_of_each_group(prompts: Any, limit: int) -> Any:
    """Return the first `limit` prompts of each group, in order.

    Raises:
        UserError: if `limit` is less than 1.
    """
    if limit < 1:
        raise UserError(f"--limit {limit}: give 1 or more")
    return prompts.take(
        sorted(row for group in prompts.groups for row in prompts.rows(group)[:limit])
    )


def _tell(message: str) -> None:
    """Print a line about what is going on, on standard error."""
    print(one_line(message), file=sys.stderr)
