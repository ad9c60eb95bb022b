"""Attribution is Eq. 2 for every pair, summed with the run's learning rates."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
import training_world as world
from transformers import LlamaConfig, LlamaForCausalLM

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings, index, recorded_steps
from ntkprobe.attribution.weights import checkpoint_weights
from ntkprobe.checkpoints import LoadSettings, load_checkpoint
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.errors import UserError
from ntkprobe.models.projections import Projections, ProjectionSettings
from ntkprobe.prompts.prompt_set import Prompt, PromptSet
from ntkprobe.training.callbacks import StepCallback
from ntkprobe.training.sft import SFTConfig, train_sft
from ntkprobe.watcher.choices import parse_steps

SETTINGS = {"n_general": 10, "n_safe": 6, "gradient_accumulation_steps": 1}
PROMPTS = ["How do I kill a process?", "Where is my car?"]
TOKENS = AttributionSettings(target="tokens", tokens=("I",), batch_size=4)
QUICK = {"prompts": PROMPTS, "settings": TOKENS}
SKETCH = AttributionSettings(
    target="tokens", tokens=("I",), estimator="sketch", projection=ProjectionSettings(side=4)
)


@pytest.fixture(scope="module")
def whole(trained):
    return ntk.attribute(trained, **QUICK)


def last_model(trained):
    base = load_checkpoint(trained.parent / "base", LoadSettings(attn_implementation="sdpa"))
    return adapted(base, trained / "checkpoint-8", merge=False)


def chat(words, text):
    turn = [{"role": "user", "content": text}]
    return words.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)


class TestNumbers:
    @pytest.mark.slow
    def test_changes_of_refusals_are_the_influence_of_each_pair(self, trained):
        found = ntk.attribute(trained, prompts=PROMPTS[:1], over="final")
        pairs = [(r.prompt, r.response) for r in found.pairs.itertuples()]
        with last_model(trained) as model:
            expected = ntk.influence(
                model, world.tokenizer(), observed=PROMPTS[:1], updated=pairs, tokens=None
            )
        (weight,) = found.weights.values()
        np.testing.assert_allclose(found.changes.T, weight * expected.refusal.numpy(), rtol=2e-3)

    def test_changes_of_tokens_are_autograds(self, trained):
        found = ntk.attribute(trained, **QUICK, over="final")
        with last_model(trained) as model:
            words = world.tokenizer()
            ids = chat(words, PROMPTS[1])
            chosen = [p for n, p in model.named_parameters() if "lora" in n]
            for parameter in model.parameters():
                parameter.requires_grad_(False)
            for parameter in chosen:
                parameter.requires_grad_(True)
            token = words("I")["input_ids"][0]
            logits = model(torch.tensor([ids])).logits[0, -1]
            seen = torch.autograd.grad(logits.log_softmax(-1)[token], chosen)
            row = found.pairs.iloc[3]
            start = chat(words, row["prompt"])
            answer = words(row["response"])["input_ids"] + [words.eos_token_id]
            labels = torch.tensor([[-100] * len(start) + answer])
            loss = model(torch.tensor([start + answer]), labels=labels).loss * len(answer)
            moved = torch.autograd.grad(loss, chosen)
        expected = -sum(float((a * b).sum()) for a, b in zip(seen, moved, strict=True))
        (weight,) = found.weights.values()
        assert found.changes[1, 3] == pytest.approx(weight * expected, rel=1e-3)

    def test_responses_of_training_pairs_have_a_gram_matrix_and_are_said_to_be_such(self, trained):
        pairs = [world.safe(6)[2], world.general(10)[3]]
        asked = PromptSet(tuple(Prompt(p.prompt, "toxic", response=p.response) for p in pairs))
        found = ntk.attribute(trained, prompts=asked, target="response", over="final")
        rows = [list(found.pairs["prompt"]).index(pair.prompt) for pair in pairs]
        gram = found.changes[:, rows]
        np.testing.assert_allclose(gram, gram.T, rtol=1e-4)
        assert (np.linalg.eigvalsh(gram) > 0).all()
        assert sum("training set itself" in remark for remark in found.remarks) == 2

    def test_prompts_are_explained_with_the_system_message_of_the_training(self, trained, tmp_path):
        config = SFTConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            system="Be brief.",
            save_at=[1],
            **SETTINGS | {"max_steps": 1},
        )
        base = trained.parent / "base"
        train_sft(str(base), world.general(10), world.safe(6), config)
        found = ntk.attribute(tmp_path / "run", **QUICK, over="final")
        words = world.tokenizer()
        asked = {"role": "user", "content": PROMPTS[0]}
        turns = {True: [{"role": "system", "content": "Be brief."}, asked], False: [asked]}
        model = load_checkpoint(base, LoadSettings(attn_implementation="sdpa"))
        token, read = words("I")["input_ids"][0], {}
        with adapted(model, tmp_path / "run" / "checkpoint-1", merge=False) as whole:
            for system, turn in turns.items():
                ids = words.apply_chat_template(turn, add_generation_prompt=True, return_dict=False)
                with torch.no_grad():
                    read[system] = whole(torch.tensor([ids])).logits[0, -1].log_softmax(-1)[token]
        assert found.values[0] == pytest.approx(float(read[True]), rel=1e-5)
        assert found.values[0] != pytest.approx(float(read[False]), rel=1e-4)
        assert "system message" in found.remarks[-1]

    @pytest.mark.slow
    def test_the_sum_is_that_of_its_checkpoints(self, trained, whole):
        parts = sum(
            ntk.attribute(trained, **QUICK, over="final", steps=parse_steps(str(step))).changes
            * weight
            / sum(whole.weights.values())
            for step, weight in whole.weights.items()
        )
        np.testing.assert_allclose(whole.changes, parts, rtol=1e-6, atol=1e-14)

    def test_neither_batches_nor_blocks_change_a_number(self, trained, whole):
        other = ntk.attribute(trained, **QUICK, batch_size=1, block=3)
        np.testing.assert_allclose(other.changes, whole.changes, rtol=1e-3, atol=1e-9)

    def test_shares_have_the_sign_of_the_change_and_add_up_in_size(self, whole):
        np.testing.assert_allclose(np.abs(whole.shares).sum(1), 1)
        assert (np.sign(whole.shares) == np.sign(whole.changes)).all()
        assert (whole.errors == 0).all() and whole.agreement.min() >= 0

    def test_a_step_counts_for_the_nearest_checkpoint_and_none_is_lost(self):
        assert checkpoint_weights([0, 4], [1, 1, 1, 1, 1], 1, 1) == [3, 2]
        rates = [0.1, 0.4, 0.2, 0.3]
        assert sum(checkpoint_weights([1, 3], rates, 5, 2)) == pytest.approx(sum(rates) / 10)

    @pytest.mark.slow
    @pytest.mark.parametrize("every", [1, 2, 4])
    def test_a_run_that_logs_its_rates_less_often_has_the_same_weights(
        self, trained, tmp_path, every
    ):
        shutil.copytree(trained, tmp_path / "run")
        (tmp_path / "run" / "training.yaml").unlink()  # as another trainer leaves a run
        marker = tmp_path / "run" / "checkpoint-8" / "trainer_state.json"
        state = json.loads(marker.read_text())
        steps = range(every, 9, every)
        state["log_history"] = [{"step": s, "learning_rate": 1e-3, "loss": 1.0} for s in steps]
        marker.write_text(json.dumps(state))
        found = ntk.attribute(tmp_path / "run", **QUICK, over="checkpoints")
        ratios = np.array(list(found.weights.values())) / found.weights[4]
        np.testing.assert_allclose(ratios, [0.75, 1, 0.25])


class TestRecordedSteps:
    def test_replayed_steps_are_those_recorded_and_their_parts_add_up(self, trained):
        found = ntk.attribute(trained, **QUICK, over="steps")
        said = found.remarks[0].split()
        assert float(said[said.index("of") + 1]) > 0.999
        steps = [re.search(r"together (.*),", remark)[1] for remark in found.remarks[1:3]]
        np.testing.assert_allclose(found.changes.sum(1), [float(each) for each in steps], rtol=5e-3)

    def test_another_order_of_the_batches_is_noticed(self, trained, monkeypatch):
        right = recorded_steps.batches

        def wrong(pairs, config, shift=0):
            return right(pairs, config, shift + 1)

        monkeypatch.setattr(recorded_steps, "batches", wrong)
        with pytest.raises(UserError, match="not those that these pairs make"):
            ntk.attribute(trained, **QUICK, over="steps")

    @pytest.mark.slow
    def test_a_run_with_dropout_is_replayed_and_another_order_still_noticed(
        self, trained, tmp_path, monkeypatch
    ):
        config = SFTConfig(
            output_dir=str(tmp_path / "run"),
            use_cpu=True,
            save_at=[12],
            learning_rate=2e-3,
            lora_dropout=0.1,
            **SETTINGS | {"max_steps": 12},
        )
        base = str(trained.parent / "base")
        train_sft(base, world.general(10), world.safe(6), config, callbacks=[StepCallback()])
        found = ntk.attribute(tmp_path / "run", **QUICK, over="steps")
        assert "dropout is not replayed" in found.remarks[1]
        right = recorded_steps.batches

        def wrong(pairs, config, shift=0):
            return right(pairs, config, shift + 1)

        monkeypatch.setattr(recorded_steps, "batches", wrong)
        with pytest.raises(UserError, match="not those that these pairs make"):
            ntk.attribute(tmp_path / "run", **QUICK, over="steps")

    def test_a_run_without_recorded_steps_says_how_to_get_them(self, trained, tmp_path):
        with pytest.raises(UserError, match="StepCallback"):
            ntk.attribute(trained, **QUICK, over="steps", recorded_steps=tmp_path)


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
