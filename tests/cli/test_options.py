"""Laws of commands made of dataclasses: one option for each field, and the same settings back."""

import subprocess
import sys
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from ntkprobe.cli._measure_options import MeasureOptions
from ntkprobe.cli._options import command_of
from ntkprobe.cli._train_options import DCROptions, SFTOptions
from ntkprobe.cli.evaluate import EvaluateOptions
from ntkprobe.cli.mitigate import FitOptions
from ntkprobe.cli.triggers import TriggerOptions
from ntkprobe.errors import UserError
from ntkprobe.settings import (
    NO_OPTION,
    Flag,
    LoadSettings,
    field_docs,
    leaves,
    require_same_settings,
)
from ntkprobe.watcher.settings import KernelSettings, MeasureSettings, RefusalSettings


@dataclass(frozen=True, kw_only=True)
class Inner:
    """Settings inside of others.

    Attributes:
        depth: how `deep`, in m.
        secret: not an option.
    """

    depth: Annotated[int, Flag(panel="Depths")] = 1
    secret: Annotated[int, NO_OPTION] = 5


@dataclass(frozen=True, kw_only=True)
class Outer:
    """Settings.

    Attributes:
        name: who [or
            what] it is.
        loud: say so.
        quiet: say nothing.
        inner: the others.
    """

    name: str
    loud: bool = False
    quiet: Annotated[
        bool, Flag(name="no_sound", typed=bool, default=False, convert=lambda value: not value)
    ] = True
    inner: Inner = field(default_factory=lambda: Inner(depth=3, secret=9))


@pytest.fixture
def call():
    """Run a command of `Outer`: the settings that it was given, and what was printed."""
    given = []

    @command_of(Outer)
    def command(options: Outer) -> None:
        """Do it."""
        given.append(options)

    app = typer.Typer(rich_markup_mode="rich")
    app.command()(command)

    def run(*words):
        found = CliRunner().invoke(app, list(words), env={"COLUMNS": "120"})
        return (given[-1] if given else None), found.output

    return run


def test_options_become_the_settings_nested_ones_included(call):
    assert call("--name", "a")[0] == Outer(name="a")
    found, _ = call("--name", "b", "--loud", "--no-sound", "--depth", "7")
    assert found == Outer(name="b", loud=True, quiet=False, inner=Inner(depth=7, secret=9))


def test_the_default_of_nested_settings_is_that_of_the_outer_ones(call):
    assert call("--name", "a")[0].inner.depth == 3 != Inner().depth


def test_a_field_without_an_option_is_refused_and_keeps_its_default(call):
    found, said = call("--name", "a", "--secret", "1")
    assert found is None and "--secret" in said
    assert call("--name", "a")[0].inner.secret == 9 != Inner().secret


def test_the_help_of_an_option_is_the_documentation_of_its_field(call):
    said = call("--help")[1]
    assert "Who [or what] it is." in said and "How deep, in m." in said and "Depths" in said


def test_what_a_class_says_of_a_field_beats_what_its_base_says():
    @dataclass(frozen=True)
    class Special(Inner):
        """Others.

        Attributes:
            depth: of the well.
        """

    assert field_docs(Special) == {"depth": "of the well.", "secret": "not an option."}


@pytest.mark.parametrize(
    "kind",
    [
        MeasureOptions,
        EvaluateOptions,
        TriggerOptions,
        FitOptions,
        DCROptions,
        SFTOptions,
        MeasureSettings,
        KernelSettings,
        RefusalSettings,
        LoadSettings,
    ],
)
def test_every_field_of_a_command_is_documented(kind):
    assert {each.name for each in fields(kind)} == set(field_docs(kind))


def test_the_help_of_a_command_loads_no_torch_and_is_in_panels():
    code = (
        "import sys; from ntkprobe.cli import main;"
        "main(['measure', '--help']); main(['evaluate', '--help']);"
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    order = [found.stdout.index(word) for word in ("--ckpt-dir", "Kernel", "--top-k", "--follow")]
    assert order == sorted(order)


class TestComparison:
    """One comparison says which setting of two records differs."""

    OLD: ClassVar = {"kernel": {"top_k": 10, "method": "a", "tokens": [1]}, "refusal": None}

    def test_equal_settings_agree_and_tuples_are_lists(self):
        now = {"kernel": {"top_k": 10, "method": "b", "tokens": (1,)}, "refusal": {"n": 1}}
        before, asked = (dict(leaves(each, ["method"])) for each in (self.OLD, now))
        assert before == {"kernel.top_k": 10, "kernel.tokens": [1]}
        require_same_settings("F", "measured", before, asked)

    def test_another_value_is_named_with_both(self):
        before, now = dict(leaves(self.OLD)), {"kernel.top_k": 4}
        with pytest.raises(UserError, match=r"F was measured with kernel.top_k = 10, now it is 4"):
            require_same_settings("F", "measured", before, now)

    def test_what_only_one_has_is_a_contradiction_where_it_is_to_be(self):
        for before, now in (({"a": 1}, {}), ({}, {"a": 1})):
            require_same_settings("F", "measured", before, now)
            with pytest.raises(UserError, match=r"a = (1|None), now it is (1|None)"):
                require_same_settings("F", "measured", before, now, both=True)
