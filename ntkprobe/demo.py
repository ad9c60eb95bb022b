"""The paper's finding on the embedded model, end to end; also a first example of the public API.

    base ────────────── SFT ──► stl      ── measure ──► stl-ntk ─────┐   (first figure: refusals)
    base ── DCR ──► dcr ── SFT ──► dcr-stl ── measure ──► dcr-stl-ntk ─┴──► figures, page

Every stage reads and writes files. A finished stage is recognised by its files and left alone, an
interrupted one goes on, so the demo can be stopped and run again at any point.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .figures import Drawn, draw_figures, find_runs
from .jupyter import paragraph, table
from .plots import style
from .presets.settings import preset_settings
from .prompts.prompt_set import PromptSet
from .report import make_report
from .tiny import files as embedded
from .training.data import read_pairs
from .training.dcr import DCRConfig, train_dcr
from .training.sft import SFTConfig, train_sft
from .trajectory import Trajectory
from .watcher import KernelSettings, MeasureSettings, measure_run

FIGURES = ("fig1", "fig3", "fig5", "fig6")


@dataclass(frozen=True)
class Demo:
    """What the demo made.

    Attributes:
        runs: the measured runs, `stl` and `dcr-stl`.
        figures: the pictures.
        failed: steps that could not be measured, and why.
        report: the page about both runs.
    """

    runs: dict[str, Trajectory]
    figures: Drawn
    failed: dict[str, str]
    report: Path | None = None

    def _repr_html_(self) -> str:
        tables = (
            paragraph(style.run_label(name)) + table(before_and_after(run))
            for name, run in self.runs.items()
        )
        return "".join(tables)


def run_demo(output_dir: Path, seed: int = 0, tell: Callable[[str], None] = print) -> Demo:
    """Train without and with DCR, measure both runs at every checkpoint, and draw.

    Args:
        output_dir: where to; what is there already is not done again.
        seed: of the training data's order, the adapters and the choice of prompts.
        tell: is called with a line before each stage.

    Returns:
        The measured runs, their figures and their page.
    """
    base = str(preset_settings("tiny", "sft")["model"])
    tell("1/5  safety alignment of the base model (STL)")
    align(base, output_dir / "stl", seed)
    tell("2/5  measuring that run: refusals, then the kernel between prompts")
    refusals = MeasureSettings(kernel=None)
    failed = measure(output_dir / "stl", output_dir / "stl-ntk", refusals)
    for picture in first_figure(output_dir / "stl-ntk", output_dir / "figures"):
        tell(f"     a first figure, of STL alone: {picture}")
    both = MeasureSettings(kernel=KernelSettings(seed=seed, by="layer"))
    failed |= measure(output_dir / "stl", output_dir / "stl-ntk", both)
    tell("3/5  contrastive refinement of the base model (DCR), and safety alignment of that")
    refined = refine(output_dir / "dcr", seed)
    align(str(refined), output_dir / "dcr-stl", seed)
    tell("4/5  measuring that run (DCR → STL)")
    failed |= measure(output_dir / "dcr-stl", output_dir / "dcr-stl-ntk", both)
    tell("5/5  drawing")
    runs = find_runs([output_dir])
    figures = draw_figures(runs, output_dir / "figures", FIGURES)
    page = make_report([run.folder for run in runs.values()]).save(output_dir / "report.html")
    return Demo(runs, figures, failed, page)


def first_figure(measured: Path, folder: Path) -> list[Path]:
    """Return the picture of P(refuse) of one run, drawn now; none where there are figures."""
    if folder.exists():
        return []
    drawn = draw_figures(find_runs([measured]), folder, ("fig5",))
    return [path for path in drawn.files if path.suffix == ".png"]


def align(model: str, folder: Path, seed: int) -> Path:
    """Return the adapter that safety fine-tuning (paper, A.3) of `model` leaves in `folder`."""
    settings = preset_settings("tiny", "sft") | {"output_dir": str(folder), "seed": seed}
    del settings["model"]
    general, safe = read_pairs(embedded.general_path()), read_pairs(embedded.safe_path())
    return train_sft(model, general, safe, SFTConfig(**settings), held_out=_measured_texts())


def refine(folder: Path, seed: int) -> Path:
    """Return the model that contrastive refinement (paper, A.2) of the base leaves in `folder`."""
    settings = preset_settings("tiny", "dcr") | {"output_dir": str(folder), "seed": seed}
    model = str(settings.pop("model"))
    prompts = PromptSet.from_file(embedded.dcr_path())
    return train_dcr(model, prompts, DCRConfig(**settings), held_out=_measured_texts())


def _measured_texts() -> dict[str, list[str]]:
    """Return the prompts that no training may see."""
    prompts = PromptSet.from_file(embedded.measure_path())
    return {"measured": [prompt.text for prompt in prompts]}


def measure(run: Path, folder: Path, settings: MeasureSettings) -> dict[str, str]:
    """Measure every checkpoint of a run on prompts that no training has seen.

    Args:
        run: the folder with the checkpoints.
        folder: where the measurements go.
        settings: what is measured, and how.

    Returns:
        What failed, by run and step.

    Raises:
        KeyboardInterrupt: if the user stopped it.
    """
    prompts = PromptSet.from_file(embedded.measure_path())
    outcome = measure_run(prompts, folder, ckpt_dir=run, settings=settings)
    if outcome.interrupted:
        raise KeyboardInterrupt
    return {f"{run.name}, step {step}": why for step, why in outcome.failed.items()}


def before_and_after(run: Trajectory) -> pd.DataFrame:
    """Return what safety alignment did to a run.

    Args:
        run: measured, with answers.

    Returns:
        A column for the first step and one for the last; rows `(quantity, group)`: the refusal rate
        and the mean refusal probability of every group, and the mean similarity of seemingly toxic
        and toxic prompts in each direction, observed ← updated.
    """
    rows = run.refusal().query("reduction == 'literal'")
    by_group = rows.astype({"refuses": float}).groupby(["step", "group"])
    rates, probabilities = (by_group[c].mean().unstack() for c in ("refuses", "probability"))
    pairs = run.group_means(resamples=0)
    pairs["pair"] = pairs["observed_group"] + " ← " + pairs["updated_group"]
    similarity = pairs.pivot(index="step", columns="pair", values="similarity")
    table = pd.concat(
        {
            "refusal rate": rates,
            "P(refuse)": probabilities,
            "similarity": similarity[["seemingly_toxic ← toxic", "toxic ← seemingly_toxic"]],
        },
        axis=1,
    )
    return table.sort_index().iloc[[0, -1]].T
