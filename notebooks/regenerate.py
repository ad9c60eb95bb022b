"""Run the notebooks and write their .ipynb: `python notebooks/regenerate.py [NAME...]`.

The .py files are the source; each .ipynb is its pair, with the outputs of one run, so that a reader
sees the figures without running anything.
"""

import sys
from base64 import b64decode, b64encode
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory

import jupytext
import nbformat
from nbclient import NotebookClient
from PIL import Image

HERE = Path(__file__).parent
PATIENCE = 600  # seconds a cell: a slow machine is no failure
COLOURS = 128  # of a picture in the .ipynb, which makes it a third of the size


def notebooks() -> list[Path]:
    """Return the sources, in reading order."""
    return sorted(HERE.glob("[0-9]*.py"))


def read(source: Path) -> nbformat.NotebookNode:
    """Return the notebook of a .py file, without outputs and with the same cell ids every time."""
    notebook = jupytext.read(source)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number:02}"
    return notebook


def executed(source: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook with the outputs of a run.

    Args:
        source: its .py file.
        folder: the working directory of the run, where it leaves its files.

    Returns:
        The notebook; progress bars and what was written to stderr are left out of it.
    """
    notebook = read(source)
    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=PATIENCE,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute()
    notebook.metadata.pop("language_info", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [_smaller(output) for output in cell.outputs if not _is_progress(output)]
    return notebook


def _is_progress(output: nbformat.NotebookNode) -> bool:
    """Return whether an output is a progress bar: text on stderr, a widget, or the Trainer's."""
    data = output.get("data", {})
    widget = "application/vnd.jupyter.widget-view+json" in data
    return output.get("name") == "stderr" or widget or "<progress" in data.get("text/html", "")


FRAME = "<p>The page is shown here when the notebook is run; it is too large to be kept in it.</p>"


def _smaller(output: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Return an output whose picture, if it is one, has few colours, and without whole pages."""
    if "srcdoc=" in output.get("data", {}).get("text/html", ""):
        output.data["text/html"] = FRAME
    if "image/png" in output.get("data", {}):
        picture = Image.open(BytesIO(b64decode(output.data["image/png"]))).convert("RGB")
        with BytesIO() as file:
            picture.quantize(COLOURS).save(file, format="png", optimize=True)
            output.data["image/png"] = b64encode(file.getvalue()).decode()
    return output


def main(names: Sequence[str]) -> None:
    """Write the .ipynb of the named notebooks, or of all."""
    for source in notebooks():
        if not names or source.stem in names:
            with TemporaryDirectory() as folder:
                nbformat.write(executed(source, Path(folder)), source.with_suffix(".ipynb"))
            print(source.with_suffix(".ipynb").name)


if __name__ == "__main__":
    main(sys.argv[1:])
