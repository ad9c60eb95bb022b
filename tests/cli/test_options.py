"""Laws of commands made of dataclasses: one option for each field, and the same settings back."""

import re
import subprocess
import sys
from dataclasses import dataclass, field, fields
from typing import Annotated, ClassVar

import pytest
import typer
from typer.testing import CliRunner

from ntkprobe.attribution import AttributionSettings
from ntkprobe.cli._measure_options import MeasureOptions
from ntkprobe.cli._options import command_of
from ntkprobe.cli._train_options import DCROptions, SFTOptions
from ntkprobe.cli.abilities import AbilitiesOptions
from ntkprobe.cli.evaluate import EvaluateOptions
from ntkprobe.cli.export import ExportOptions
from ntkprobe.cli.mitigate import FitOptions
from ntkprobe.cli.replicate import ReplicateOptions
from ntkprobe.cli.triggers import TriggerOptions
from ntkprobe.cli.why import WhyOptions
from ntkprobe.cli.win_rate import WinRateOptions
from ntkprobe.errors import UserError
from ntkprobe.evaluation.settings import AbilitySettings
from ntkprobe.measurement.influence import LOSSES
from ntkprobe.models.projection_settings import ProjectionSettings
from ntkprobe.replication import ReplicationSettings
from ntkprobe.settings import (
    NO_OPTION,
    Flag,
    LoadSettings,
    field_docs,
    leaves,
    require_same_settings,
)
from ntkprobe.training.config import SAVE_STEPS, DCRConfig, SFTConfig
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
        WhyOptions,
        AbilitiesOptions,
        ExportOptions,
        ReplicateOptions,
        WinRateOptions,
        MeasureSettings,
        KernelSettings,
        RefusalSettings,
        LoadSettings,
        AttributionSettings,
        ProjectionSettings,
        AbilitySettings,
        ReplicationSettings,
    ],
)
def test_every_field_of_a_command_is_documented(kind):
    assert {each.name for each in fields(kind)} == set(field_docs(kind))


def test_the_help_of_a_command_loads_no_torch_and_is_in_panels():
    code = (
        "import sys; from ntkprobe.cli import main;"
        "commands = 'measure evaluate why abilities export replicate win-rate'.split();"
        "[main([command, '--help']) for command in commands];"
        "assert not {'torch', 'pandas', 'transformers'} & set(sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    order = [found.stdout.index(word) for word in ("--ckpt-dir", "Kernel", "--top-k", "--follow")]
    assert order == sorted(order)


WITHOUT_VALUE = {"all", "none", "as many as refusals", "a tenth", "q, k and v"}
"""How the help of `ntkprobe train` calls a default that is None."""


@pytest.mark.parametrize(("options", "config"), [(DCROptions, DCRConfig), (SFTOptions, SFTConfig)])
def test_the_defaults_that_the_help_of_train_names_are_the_configurations(options, config):
    defaults = {each.name: each.default for each in fields(config)}
    told = set()
    for name, text in field_docs(options).items():
        if (said := re.search(r"\[(.+)\]$", text)) is None:
            continue
        told.add(name)
        word, default = said[1].partition(":")[0], defaults[name]
        if word == "each epoch":
            assert (defaults["save_strategy"], default) == ("epoch", SAVE_STEPS), name
        elif default is None:
            assert word in WITHOUT_VALUE, name
        else:
            assert (word if isinstance(default, str) else float(word)) == default, name
    # Switches are off, and a layer and a number of steps have no default to be told.
    silent = {name for name, value in defaults.items() if value is None or value is False}
    named = {each.name for each in fields(options)} & set(defaults)
    assert named - silent - {"layer", "max_steps", "output_dir"} <= told


def test_losses_of_whole_answers_are_those_of_influence():
    for loss in LOSSES:
        if loss == "first_token":
            with pytest.raises(UserError, match="no loss 'first_token': choose from"):
                AttributionSettings(loss=loss)
        else:
            assert AttributionSettings(loss=loss).loss == loss


def test_settings_within_others_may_offer_some_of_their_fields(call):
    @dataclass(frozen=True, kw_only=True)
    class Some:
        inner: Annotated[Inner, Flag(only=("depth",))] = field(
            default_factory=lambda: Inner(depth=3, secret=9)
        )
        load: Annotated[LoadSettings, Flag(only=("dtype",))] = field(
            default_factory=lambda: LoadSettings(device="cpu")
        )
        count: Annotated[int, Flag(least=2)] = 2

    given = []
    app = typer.Typer()
    app.command()(command_of(Some)(given.append))
    run = CliRunner().invoke
    assert run(app, ["--depth", "4", "--dtype", "float64"]).exit_code == 0
    assert given[0].inner == Inner(depth=4, secret=9)
    assert given[0].load == LoadSettings(dtype="float64", device="cpu")
    assert run(app, ["--device", "cpu"]).exit_code == run(app, ["--count", "1"]).exit_code == 2
    assert len(given) == 1


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

    def test_the_message_says_what_to_do_and_cuts_what_is_long(self):
        with pytest.raises(UserError, match=r"now it is 2: give another --output-dir, or"):
            require_same_settings("F", "made", {"a": 1}, {"a": 2})
        with pytest.raises(UserError, match=r"= '?\['x', .*…, now it is \[\]: stop$") as raised:
            require_same_settings("F", "made", {"a": ["x"] * 999}, {"a": []}, instead="stop")
        assert len(str(raised.value)) < 300
