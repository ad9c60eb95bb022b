"""Attribution from a sketch: within its errors, and from an index that serves other prompts."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from attributed_runs import PROMPTS, SKETCH, last_model
from transformers import LlamaConfig, LlamaForCausalLM

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings, index
from ntkprobe.errors import UserError
from ntkprobe.models.projections import Projections, ProjectionSettings


class TestSketch:
    def test_a_sketch_is_the_exact_sum_within_its_errors(self, trained, whole):
        found = ntk.attribute(trained, prompts=PROMPTS, settings=SKETCH)
        off = np.abs(found.changes - whole.changes) / found.errors
        assert 0 < off.mean() < 2 and (off < 5).mean() > 0.95
        assert np.corrcoef(found.changes[0], whole.changes[0])[0, 1] > 0.8

    def test_an_index_serves_other_prompts_and_is_one_file_a_checkpoint(self, trained, tmp_path):
        options = {"settings": SKETCH, "index_dir": tmp_path / "index", "over": "final", "block": 6}
        first = ntk.attribute(trained, prompts=PROMPTS, output_dir=tmp_path / "one", **options)
        file = tmp_path / "index" / "step-00000008.safetensors"
        when = file.stat().st_mtime_ns
        second = ntk.attribute(trained, prompts=PROMPTS[1:], output_dir=tmp_path / "two", **options)
        np.testing.assert_allclose(second.changes[0], first.changes[1], rtol=1e-6)
        assert file.stat().st_mtime_ns == when
        names = {path.name for path in (tmp_path / "index").iterdir()}
        assert names == {file.name, "step-00000008.json"}

    def test_a_stopped_index_goes_on_with_blocks_of_another_size(self, trained, tmp_path):
        common = {"prompts": PROMPTS, "settings": SKETCH, "over": "final"}
        whole = ntk.attribute(trained, **common)
        here = {**common, "index_dir": tmp_path / "index"}
        assert ntk.attribute(trained, **here, block=6, shard=(0, 2)) is None
        assert len(list((tmp_path / "index").rglob("pairs-*"))) == 2
        found = ntk.attribute(trained, **here, block=4)
        np.testing.assert_allclose(found.changes, whole.changes, rtol=1e-3, atol=1e-9)

    def test_workers_that_merge_at_once_leave_one_index(self, trained, tmp_path, monkeypatch):
        common = {"prompts": PROMPTS, "settings": SKETCH, "over": "final", "block": 6}
        whole, merge = ntk.attribute(trained, **common), index.merge

        def overtaken(blocks, step, path):
            merge(blocks, step, path)  # as the other worker does, who then removes the blocks
            blocks.forget(step)
            merge(blocks, step, path)

        monkeypatch.setattr(index, "merge", overtaken)
        found = ntk.attribute(trained, **common, index_dir=tmp_path)
        np.testing.assert_allclose(found.changes, whole.changes, rtol=1e-3, atol=1e-9)

        def lost(blocks, step, path):
            blocks.forget(step)
            merge(blocks, step, path)

        monkeypatch.setattr(index, "merge", lost)
        with pytest.raises(FileNotFoundError):
            ntk.attribute(trained, **common, index_dir=tmp_path / "other")

    def test_a_worker_stopped_before_the_merge_is_made_up_for(self, trained, tmp_path, monkeypatch):
        options = {"prompts": PROMPTS, "settings": SKETCH, "over": "final", "index_dir": tmp_path}
        options["output_dir"] = tmp_path / "out"

        def stopped(*_):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(index, "merge", stopped)
            with pytest.raises(KeyboardInterrupt):
                ntk.attribute(trained, **options)
        found = ntk.attribute(trained, **options)
        whole = ntk.attribute(trained, prompts=PROMPTS, settings=SKETCH, over="final")
        np.testing.assert_allclose(found.changes, whole.changes, rtol=1e-3, atol=1e-9)

    def test_an_index_has_the_size_of_its_layout_and_20000_pairs_of_a_135m_model_take_under_2_gib(
        self, trained, tmp_path
    ):
        options = {"prompts": PROMPTS, "settings": SKETCH, "over": "final", "index_dir": tmp_path}
        ntk.attribute(trained, **options)
        with last_model(trained) as model:
            chosen = {n: p for n, p in model.named_parameters() if "lora_" in n}
            features = SKETCH.projection.parts * Projections(chosen, SKETCH.projection).size
        file = tmp_path / "step-00000008.safetensors"
        head = int.from_bytes(file.read_bytes()[:8], "little")
        assert file.stat().st_size == 8 + head + sum(index.tensor_bytes(16, features))

        shape = LlamaConfig(  # SmolLM2-135M's
            hidden_size=576,
            intermediate_size=1536,
            num_hidden_layers=30,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=49152,
            tie_word_embeddings=True,
        )
        with torch.device("meta"):
            large = dict(LlamaForCausalLM(shape).named_parameters())
        assert 134e6 < sum(p.numel() for p in large.values()) < 136e6
        how = AttributionSettings().projection
        features = how.parts * Projections(large, how).size
        assert sum(index.tensor_bytes(20_000, features)) < 2 << 30

    def test_an_index_of_other_parameters_is_refused(self, trained, tmp_path):
        options = {"prompts": PROMPTS, "settings": SKETCH, "over": "final", "index_dir": tmp_path}
        ntk.attribute(trained, **options)
        with pytest.raises(UserError, match=r"made with parameters = .*another --index"):
            ntk.attribute(trained, **options, parameters="head")
        with pytest.raises(UserError, match="made with projection"):
            ntk.attribute(trained, **options, projection=ProjectionSettings(side=5))

    def test_an_index_of_another_seed_is_refused_also_where_the_prompts_are_known(
        self, trained, tmp_path
    ):
        other = replace(SKETCH, projection=replace(SKETCH.projection, seed=1))
        common = {"prompts": PROMPTS, "over": "final"}
        ntk.attribute(trained, **common, settings=other, index_dir=tmp_path / "other")
        here = {**common, "settings": SKETCH, "output_dir": tmp_path / "out"}
        ntk.attribute(trained, **here, index_dir=tmp_path / "one")
        with pytest.raises(UserError, match="made with projection"):
            ntk.attribute(trained, **here, index_dir=tmp_path / "other")

    def test_an_index_of_another_checkpoint_is_refused(self, trained, tmp_path):
        options = {"prompts": PROMPTS, "settings": SKETCH, "over": "final", "index_dir": tmp_path}
        ntk.attribute(trained, **options)
        other = tmp_path / "run"
        shutil.copytree(trained, other)
        weights = "adapter_model.safetensors"
        shutil.copy(trained / "checkpoint-4" / weights, other / "checkpoint-8" / weights)
        (other / "checkpoint-8" / "trainer_state.json").touch()
        with pytest.raises(UserError, match="made with checkpoint = "):
            ntk.attribute(other, **options)
