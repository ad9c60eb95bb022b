"""The command itself: which sub-commands there are, and what their failures look like.

A sub-command is imported when it is called; for the list of commands its first line is read from
the file, so that `ntkprobe --help` loads nothing.
"""

import ast
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from .. import __version__
from ..errors import UserError, one_line

# typer brings its own click, or uses the installed one.
ClickException: Any = typer.BadParameter.__mro__[2]


class Commands(TyperGroup):
    """The modules of this folder as sub-commands."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the names of all sub-commands."""
        return sorted(_modules())

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """Return a sub-command's name and one line about it, without importing it."""
        path = _modules().get(cmd_name)
        if path is None:
            return None
        first = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
        about = first.partition(": ")[2]
        return TyperCommand(cmd_name, help=about[:1].upper() + about[1:])

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Return the sub-command that the arguments name, imported now."""
        name, stub, rest = super().resolve_command(ctx, args)
        return name, stub and _load(str(stub.name)), rest


def _modules() -> dict[str, Path]:
    """Return the files of this folder that are sub-commands, by name."""
    folder = Path(__file__).parent
    return {path.stem.replace("_", "-"): path for path in folder.glob("[!_]*.py")}


def _load(name: str) -> Any:
    """Return a module's command: its `app`, or its function called `command` or like the module."""
    plain = name.replace("-", "_")
    module = import_module(f".{plain}", __package__)
    if hasattr(module, "app"):
        return typer.main.get_command(module.app)
    alone = typer.Typer(add_completion=False, rich_markup_mode="rich")
    alone.command(name)(getattr(module, "command", None) or getattr(module, plain))
    return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    # --ckpt_dir works like --ckpt-dir.
    context_settings={"token_normalize_func": lambda token: token.replace("_", "-")},
)


def _show_version(wanted: bool) -> None:
    """Print the version and leave, if it is asked for.

    Raises:
        Exit: the wish is fulfilled.
    """
    if wanted:
        typer.echo(f"ntkprobe {__version__}")
        raise typer.Exit


@app.callback()
def _ntkprobe(
    version: Annotated[
        bool,
        typer.Option("--version", help="Print the version.", callback=_show_version, is_eager=True),
    ] = False,
) -> None:
    """Shows why a language model starts to refuse.

    Measures the empirical neural tangent kernel (eNTK) between prompts, and refusal probabilities.
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: its arguments; None for those of the process.

    Returns:
        0; 1 when something failed on the way; 2 for a mistake in the call; 130 when interrupted.
    """
    arguments = None if argv is None else list(argv)
    try:
        status = app(args=arguments, prog_name="ntkprobe", standalone_mode=False)
    except UserError as error:
        return _say(error, 2)
    except ClickException as error:
        return _say(error.format_message(), 2)
    except (KeyboardInterrupt, typer.Abort):
        status = 130
    except BrokenPipeError:
        # `ntkprobe … | head`: nobody reads on, and the interpreter must not complain of it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        kept = "what was finished is kept; run the same command to go on"
        return _say(f"{where}{error.strerror or error}; {kept}", 1)
    if status == 130:  # also where typer caught the interrupt itself
        return _say("interrupted; the same command goes on where it was", 130)
    return status if isinstance(status, int) else 0


def _say(message: object, status: int) -> int:
    """Print one line on standard error.

    Returns:
        The exit status given.
    """
    print(f"ntkprobe: {one_line(message)}", file=sys.stderr)
    return status
