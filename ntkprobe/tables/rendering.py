"""A table of numbers with notes, rendered as Markdown, LaTeX or CSV."""

from dataclasses import dataclass

import pandas as pd

FORMATS = ("markdown", "latex", "csv")
_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "†": r"\dag{}",
    "κ": r"$\kappa$",
    "–": "--",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


@dataclass(frozen=True)
class Table:
    """Numbers in rows and columns, with notes.

    Attributes:
        title: what it is.
        corner: what the rows are, such as `method`.
        numbers: tidy: `row, column, value, low, high, count, of, digits`, and `paper` where the
            paper's were asked for. A cell without a row here is missing, and stays empty.
        marked: columns with prompts that a model was trained on.
        notes: one line each.
    """

    title: str
    corner: str
    numbers: pd.DataFrame
    marked: frozenset[str] = frozenset()
    notes: tuple[str, ...] = ()

    def text(self, form: str) -> str:
        """Return the table in one of `FORMATS`; CSV has the tidy numbers, unrounded."""
        return {"markdown": self.markdown, "latex": self.latex, "csv": self.csv}[form]()

    def markdown(self) -> str:
        """Return the table for GitHub and mkdocs."""
        lines = [[markdown_escaped(cell) for cell in line] for line in self._lines()]
        rule = ["---"] * len(lines[0])
        body = "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))
        notes = "".join(f"\n\n{markdown_escaped(note)}" for note in self.notes)
        return f"**{markdown_escaped(self.title)}**\n\n{body}{notes}\n"

    def latex(self) -> str:
        """Return the table for a document that uses the package `booktabs`."""
        head, *rows = [" & ".join(map(latex_escaped, line)) + r" \\" for line in self._lines()]
        notes = " ".join(map(latex_escaped, self.notes))
        columns = "l" * (1 + self.numbers["column"].nunique())
        return "\n".join(
            (
                r"\begin{table}",
                rf"\caption{{{latex_escaped(self.title)}. {notes}}}",
                rf"\begin{{tabular}}{{{columns}}}",
                r"\toprule",
                head,
                r"\midrule",
                *rows,
                r"\bottomrule",
                r"\end{tabular}",
                "\\end{table}\n",
            )
        )

    def csv(self) -> str:
        """Return the tidy numbers, one line a cell, unrounded."""
        shown = self.numbers.drop(columns="digits")
        return shown.assign(in_distribution=shown["column"].isin(list(self.marked))).to_csv(
            index=False, lineterminator="\n"
        )

    def _lines(self) -> list[list[str]]:
        """Return the header and the rows as texts, in the order of the numbers."""
        rows = list(dict.fromkeys(self.numbers["row"]))
        columns = list(dict.fromkeys(self.numbers["column"]))
        cells = {
            (cell["row"], cell["column"]): _cell(cell) for cell in self.numbers.to_dict("records")
        }
        header = [f"{name} †" if name in self.marked else name for name in columns]
        body = [[row, *(cells.get((row, name), "–") for name in columns)] for row in rows]
        return [[self.corner, *header], *body]


def markdown_escaped(text: str) -> str:
    """Return a text that neither ends a cell nor begins a format."""
    line = " ".join(str(text).split())
    return "".join(f"\\{c}" if c in "\\|*_`<[]" else c for c in line)


def latex_escaped(text: str) -> str:
    """Return a text that LaTeX prints as it is."""
    return "".join(_LATEX.get(c, c) for c in " ".join(str(text).split()))


def _cell(cell: dict) -> str:
    """Return a number with its interval, its coverage where below 1, and the paper's number."""
    digits = int(cell["digits"])
    text = "–" if pd.isna(cell["value"]) else f"{cell['value']:.{digits}f}"
    if not pd.isna(cell.get("low")) and not pd.isna(cell["value"]):
        text += f" [{cell['low']:.{digits}f}, {cell['high']:.{digits}f}]"
    if not pd.isna(cell.get("of")) and cell["count"] < cell["of"]:
        text += f" ({int(cell['count'])} of {int(cell['of'])})"
    if not pd.isna(cell.get("paper")):
        text += f"; paper {cell['paper']:.{digits}f}"
    return text
