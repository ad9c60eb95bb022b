"""A folder of attributions: gone on with, shared and shown; and what is refused."""

import shutil

import numpy as np
import pytest
from attributed_runs import PROMPTS, QUICK, SKETCH, TOKENS

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.models.projections import ProjectionSettings
from ntkprobe.watcher.choices import parse_steps


class TestFolder:
    def test_a_stopped_call_goes_on_and_repeats_nothing(self, trained, whole, tmp_path):
        options = {**QUICK, "output_dir": tmp_path, "block": 6}
        ntk.attribute(trained, **options)
        files = sorted((tmp_path / "products").rglob("pairs-*.safetensors"))
        files[1].unlink()
        before = {path: path.stat().st_mtime_ns for path in files if path.exists()}
        before = {path: when for path, when in before.items() if "products" in str(path)}
        found = ntk.attribute(trained, **options)
        assert files[1].is_file()
        assert all(
            path.stat().st_mtime_ns == when
            for path, when in before.items()
            if "products" in str(path)
        )
        np.testing.assert_allclose(found.changes, whole.changes, rtol=1e-5, atol=1e-12)

    def test_workers_share_a_folder(self, trained, whole, tmp_path):
        options = {**QUICK, "output_dir": tmp_path, "block": 6}
        assert ntk.attribute(trained, **options, shard=(0, 2)) is None
        found = ntk.attribute(trained, **options, shard=(1, 2))
        np.testing.assert_allclose(found.changes, whole.changes, rtol=1e-5, atol=1e-12)

    def test_other_prompts_or_settings_are_refused_with_both_values(self, trained, tmp_path):
        ntk.attribute(trained, **QUICK, output_dir=tmp_path, over="final")
        with pytest.raises(UserError, match=r"made with prompts = .* give another --output-dir"):
            ntk.attribute(
                trained, prompts=["Other"], settings=TOKENS, output_dir=tmp_path, over="final"
            )
        with pytest.raises(UserError, match="made with settings"):
            ntk.attribute(trained, **QUICK, output_dir=tmp_path, over="final", loss="mean")


class TestMistakes:
    def test_a_checkpoint_that_is_not_whole_is_left_out_and_said(self, trained, tmp_path):
        shutil.copytree(trained, tmp_path / "run")
        (tmp_path / "run" / "checkpoint-4" / "adapter_model.safetensors").unlink()
        found = ntk.attribute(tmp_path / "run", **QUICK)
        assert list(found.weights) == [0, 8]
        assert found.remarks[0] == "checkpoint 4 is not whole: left out"

    def test_a_run_without_its_data_names_the_file_and_the_flag(self, trained, tmp_path):
        shutil.copytree(trained, tmp_path / "run")
        (tmp_path / "run" / "data.parquet").unlink()
        with pytest.raises(UserError, match=r"no data.parquet.*--pairs FILE"):
            ntk.attribute(tmp_path / "run", **QUICK)

    def test_pairs_that_changed_since_training_are_refused(self, trained, tmp_path):
        import pandas as pd

        shutil.copytree(trained, tmp_path / "run")
        file = tmp_path / "run" / "data.parquet"
        rows = pd.read_parquet(file)
        rows.loc[3, "response"] = "Another answer."
        rows.to_parquet(file)
        with pytest.raises(UserError, match=r"holds other pairs than .*the digest"):
            ntk.attribute(tmp_path / "run", **QUICK)

    @pytest.mark.parametrize(
        ("options", "why"),
        [
            ({"prompts": []}, "no prompts to explain"),
            ({"target": "love"}, "no target 'love'"),
            ({"target": "refusal"}, "goes with tokens"),
            ({"over": "everything"}, "no over 'everything'"),
            ({"estimator": "sketch", "over": "steps"}, "leave out the sketch"),
            ({"over": "steps", "shard": (0, 2)}, "in one process"),
            ({"over": "steps", "loss": "mean"}, "leave out loss and parameters"),
            ({"loss": "first_token"}, "no loss 'first_token'"),
            ({"steps": parse_steps("3")}, r"the run has \[0, 4, 8\]"),
            ({"colour": "red"}, "no setting 'colour'"),
            ({"settings": SKETCH, "projection": ProjectionSettings(side=99)}, "larger than every"),
        ],
    )
    def test_mistakes_are_one_line(self, trained, options, why):
        with pytest.raises(UserError, match=why):
            ntk.attribute(trained, **{**QUICK, **options})

    def test_a_response_that_is_missing_is_asked_for(self, trained):
        with pytest.raises(UserError, match="needs one of every prompt"):
            ntk.attribute(trained, prompts=PROMPTS, target="response")


def test_texts_are_shown_and_never_taken_for_markup(trained, whole):
    hostile = ntk.attribute(trained, prompts=["<script>alert(1)</script>"], settings=TOKENS)
    page = hostile._repr_html_()
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert set(whole.top(0, 2)["direction"]) <= {"towards", "away"}
    assert len(whole.frame()) == 2 * 16 and len(whole.by_source()) == 4
