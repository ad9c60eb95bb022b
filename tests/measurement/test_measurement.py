import warnings
from dataclasses import replace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch
from architectures import build
from matplotlib import pyplot as plt
from tiny_runs import TEXTS, tiny_adapter, tiny_model, tiny_tokenizer
from toy_tokenizers import byte_bpe

from ntkprobe import Prompt, PromptSet, UserError, measure_kernel, measure_refusal
from ntkprobe.errors import MeasurementWarning
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, norms
from ntkprobe.measurement import encode, evaluating
from ntkprobe.models.generation import answer_batch
from ntkprobe.prompts.phrases import is_refusal

matplotlib.use("Agg")
PROMPTS = PromptSet.from_texts(TEXTS)
TOKENIZER = tiny_tokenizer()
HOSTILE = "<script>alert(1)</script> <b>**x**</b> $y$ [a](http://b)"


def kernel(model=None, prompts=PROMPTS, **options):
    options = {"estimator": "dense", "top_k": 2, **options}
    return measure_kernel(model or tiny_model(), TOKENIZER, prompts, **options)


@pytest.fixture(scope="module")
def measured():
    return kernel(by="layer", keep_blocks=True)


def test_the_norms_are_those_of_the_blocks_of_the_top_tokens(measured):
    model = tiny_model()
    ids = [torch.tensor(TOKENIZER(prompt.text)["input_ids"]) for prompt in PROMPTS]
    tops = [model(row[None]).logits[0, -1].topk(2).indices for row in ids]
    probes = [Probe(row, tokens=top) for row, top in zip(ids, tops, strict=True)]
    torch.testing.assert_close(measured.norms, norms(Dense()(model, probes, "all")))
    assert torch.equal(measured.tokens, torch.stack(tops))


def test_the_frame_has_the_columns_of_a_trajectory_without_the_step(measured):
    table = measured.frame()
    assert list(table.columns) == [
        "observed",
        "updated",
        "observed_group",
        "updated_group",
        "norm",
        "similarity",
        "symmetric_similarity",
    ]
    row = table.query("observed == 5 and updated == 0").iloc[0]
    assert (row["observed_group"], row["updated_group"]) == ("toxic", "normal")
    assert row["similarity"] == pytest.approx(float(measured.norms[5, 0] / measured.norms[5, 5]))


def test_group_means_are_the_means_of_the_frames_pairs(measured):
    table = measured.frame().query("observed != updated")
    wanted = table.groupby(["observed_group", "updated_group"])["similarity"].mean()
    found = measured.group_means().set_index(["observed_group", "updated_group"])["similarity"]
    pd.testing.assert_series_equal(found.sort_index(), wanted, check_exact=False)


def test_the_shares_of_all_layers_and_parts_sum_to_one(measured):
    shares = measured.parts.groupby(["observed", "updated"])["share"].sum()
    np.testing.assert_allclose(shares, 1, rtol=1e-6)
    assert set(measured.parts["part"]) == {"embed+head", "attention", "mlp", "norms", "norm"}


def test_blocks_are_kept_as_they_were_measured(measured):
    assert measured.blocks.shape == (6, 2, 6, 2) and measured.blocks.dtype == torch.float32
    torch.testing.assert_close(norms(measured.blocks.double()), measured.norms, rtol=1e-5, atol=0)


def test_bare_strings_are_prompts_and_the_groups_are_normal():
    found = kernel(prompts=["bake the cake", "kill a process"])
    assert found.norms.shape == (2, 2) and {p.group for p in found.prompts} == {"normal"}


def test_a_response_prefix_moves_the_position_that_is_measured():
    texts = Prompt("kill my neighbour", "toxic"), Prompt("kill my", "toxic", response="neighbour")
    first, second = (kernel(prompts=[text]).norms for text in texts)
    torch.testing.assert_close(first, second)


def test_a_measurement_tells_what_it_depends_on(measured):
    assert measured.settings["parameters"] == "all" and measured.settings["template"] == "raw"
    assert measured.settings["estimator"] == "Dense()" and measured.settings["dtype"] == "float32"


def test_a_model_in_training_is_measured_without_dropout_and_goes_on_training():
    model = tiny_adapter(tiny_model(), seed=1, lora_dropout=0.5).train()
    modes = [module.training for module in model.modules()]
    torch.testing.assert_close(kernel(model).norms, kernel(model.eval()).norms)
    model.train()
    kernel(model)
    assert [module.training for module in model.modules()] == modes


def test_every_module_returns_to_the_mode_that_it_was_in():
    model = tiny_model().train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError), evaluating(model):
        assert not any(module.training for module in model.modules())
        raise RuntimeError
    assert [module.training for module in model.modules()] == before


def test_measuring_leaves_no_gradients_and_no_flags_behind():
    model = tiny_model()
    model.model.norm.weight.requires_grad_(False)
    before = [p.requires_grad for p in model.parameters()]
    kernel(model)
    assert [p.requires_grad for p in model.parameters()] == before
    assert all(p.grad is None for p in model.parameters())


def test_merged_or_not_is_the_same_kernel_of_base_parameters():
    merged = kernel(tiny_adapter(tiny_model(), seed=1).merge_and_unload())
    beside = kernel(tiny_adapter(tiny_model(), seed=1))
    torch.testing.assert_close(beside.norms, merged.norms, rtol=1e-5, atol=0)


def test_what_the_tokens_say_is_kept_beside_their_ids(measured):
    table = measured.token_frame()
    assert list(table.columns) == ["prompt", "rank", "token", "text"] and len(table) == 6 * 2
    row = table.query("prompt == 4 and rank == 1").iloc[0]
    assert row["token"] == measured.tokens[4, 1]
    assert row["text"] == measured.texts[4][1] == TOKENIZER.decode([row["token"]])
    assert "tokens read at x′" in measured._repr_html_()


def test_without_tokens_or_a_tokenizer_there_are_no_texts():
    every = kernel(estimator="gram", full_vocabulary=True)
    assert every.texts is None and every.token_frame().empty
    encoded = encode(TOKENIZER, PROMPTS, "raw", None)
    alone = measure_kernel(tiny_model(), None, encoded, estimator="dense", top_k=2)
    assert alone.texts is None and alone.token_frame()["text"].isna().all()
    assert len(alone.token_frame()) == 12 and "tokens read" not in alone._repr_html_()


@pytest.mark.parametrize("tokens", [[3, 4], torch.tensor([[3, 4]] * 6)])
def test_tokens_are_given_for_all_prompts_or_for_each(tokens):
    assert torch.equal(kernel(tokens=tokens).tokens, torch.tensor([[3, 4]] * 6))


@pytest.mark.parametrize("tokens", [[], [[1, 2]], [[1], [2, 3]], ["a"], [[[1]]]])
def test_tokens_of_another_shape_are_a_mistake(tokens):
    with pytest.raises(UserError, match="tokens="):
        kernel(tokens=tokens)


@pytest.mark.parametrize(
    "options",
    [{"estimator": "guess"}, {"parameters": "guess"}, {"by": "head"}, {"top_k": 0}, {"top_k": 99}],
)
def test_a_value_that_is_not_allowed_is_a_mistake(options):
    with pytest.raises(UserError):
        kernel(**options)


@pytest.mark.filterwarnings("ignore::ntkprobe.errors.MeasurementWarning")
@pytest.mark.parametrize("estimator", ["gram", "dense"])
def test_selections_are_what_each_measures_alone(estimator):
    options = {"estimator": estimator, "keep_blocks": True}
    found = kernel(parameters="norm", selections=["last:1+head", "below:1", "norm"], **options)
    assert list(found.selections) == ["last:1+head", "below:1", "norm"]
    for written, each in {**found.selections, "norm": found}.items():
        alone = kernel(parameters=written, **options)
        torch.testing.assert_close(each.norms, alone.norms, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(each.blocks, alone.blocks, rtol=1e-4, atol=1e-5)
        assert each.settings == alone.settings and each.frame().shape == alone.frame().shape


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"selections": "below:1"}, "give a list"),
        ({"selections": ["guess"]}, "no term 'guess'"),
        ({"selections": ["all", "lora"]}, "'lora' selects nothing here"),
        ({"selections": ["norm"], "by": "layer"}, "splits one selection"),
        ({"selections": ["norm"], "full_vocabulary": True}, "by selections: use top tokens"),
    ],
)
def test_selections_that_cannot_be_are_a_mistake(options, words):
    with pytest.raises(UserError, match=words):
        kernel(**options)


def test_what_should_be_known_about_a_selection_is_a_warning():
    with pytest.warns(MeasurementWarning, match="parameters head: .*tied.*cross terms"):
        kernel(parameters="head")
    with pytest.warns(
        MeasurementWarning, match=r"parameters all\+lora: .*counted together"
    ) as told:
        kernel(tiny_adapter(tiny_model(), seed=1), parameters="all+lora", selections=["all"])
    assert len(told) == 1


def test_nothing_is_warned_of_where_nothing_needs_to_be_known():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kernel(tiny_adapter(tiny_model(), seed=1), selections=["lora", "norm"], estimator="gram")


def test_an_estimator_without_parts_says_so():
    with pytest.raises(UserError, match="by layer"):
        kernel(estimator=FiniteDifference(), by="layer")


def test_encoding_another_way_changes_the_digest():
    digests = {
        encode(TOKENIZER, PROMPTS, "raw", max_length=length).digest for length in (None, 3, 2)
    }
    assert len(digests) == 3


def test_a_plot_shows_every_pair_once(measured):
    ax = measured.plot()
    assert ax.collections[0].get_array().size == 36
    assert [t.get_text() for t in ax.get_xticklabels()] == ["normal", "seemingly toxic", "toxic"]
    plt.close("all")


def test_a_plot_goes_where_it_is_asked_to():
    figure, axes = plt.subplots(1, 2)
    assert kernel().plot(axes[1]) is axes[1] and not axes[0].has_data()
    plt.close(figure)


def test_what_jupyter_shows_is_escaped():
    hostile = PromptSet.from_texts({"toxic": [HOSTILE], "normal": ["kill my neighbour"]})
    refusal = measure_refusal(tiny_model(), TOKENIZER, hostile, phrases=["sorry"], generate=False)
    for measured in (kernel(prompts=hostile), refusal):
        shown = measured._repr_html_()
        assert "<script" not in shown and "&lt;script&gt;" in shown and "<b>" not in shown
        assert shown.count("mathjax_ignore") >= 3 and "[a](http://b)" in shown


@pytest.mark.parametrize("options", [{"full_vocabulary": True}, {"random_probes": 400}])
def test_all_logits_can_be_read_exactly_or_estimated(options):
    two = PROMPTS.take([0, 4])
    every = kernel(prompts=two, tokens=list(range(32))).norms
    found = kernel(prompts=two, estimator="gram", **options)
    error = torch.zeros_like(every) if found.errors is None else found.errors
    assert ((found.norms - every).abs() <= 4 * error + 1e-5 * every).all()
    assert found.tokens is None and ("norm_error" in found.frame()) == ("random_probes" in options)


@pytest.mark.slow
@pytest.mark.parametrize("estimator", [Gram(), Gram(batch_size=5), FiniteDifference()])
def test_a_batch_size_reaches_the_estimator_and_changes_no_number(estimator, monkeypatch):
    method, seen = type(estimator), []
    original = method.__call__
    monkeypatch.setattr(
        method, "__call__", lambda self, *a: seen.append(self.batch_size) or original(self, *a)
    )
    two = kernel(estimator=estimator, batch_size=2)
    assert seen == [2] and two.settings["estimator"] == repr(estimator)
    own = kernel(estimator=estimator)
    assert seen == [2, estimator.batch_size]
    torch.testing.assert_close(two.norms, own.norms, rtol=1e-4, atol=0)


def test_a_batch_size_is_how_many_prompts_go_through_the_model_at_once():
    model, sizes = tiny_model(), []
    model.model.embed_tokens.register_forward_hook(lambda _, args, out: sizes.append(len(out)))
    kernel(model, estimator="gram", batch_size=1)
    assert max(sizes) <= 2  # the trial has two
    sizes.clear()
    kernel(model, estimator="gram")
    assert max(sizes) == 6


def test_a_batch_size_below_one_is_a_mistake_and_dense_needs_none():
    with pytest.raises(UserError, match="batch_size=0"):
        kernel(batch_size=0)
    assert torch.equal(kernel(batch_size=1).norms, kernel().norms)


def test_all_logits_have_no_blocks_and_no_two_readouts_go_together():
    with pytest.raises(UserError, match="no blocks"):
        kernel(full_vocabulary=True, keep_blocks=True)
    with pytest.raises(UserError, match="choose one of"):
        kernel(full_vocabulary=True, tokens=[1, 2])


# --- refusals ---


@pytest.fixture(scope="module")
def refusals():
    return measure_refusal(
        tiny_model(), TOKENIZER, PROMPTS, phrases=["sorry", "I cannot", "sorry I"]
    )


def test_the_refusal_probability_is_the_sum_over_the_phrases(refusals):
    model = tiny_model()

    def probability(prompt, phrase):
        ids, end = (TOKENIZER(text)["input_ids"] for text in (prompt.text, phrase))
        rows = model(torch.tensor([ids + end])).logits[0].log_softmax(-1)
        return sum(rows[len(ids) - 1 + i, token] for i, token in enumerate(end)).exp().item()

    literal = refusals.log_probabilities["given", "literal"].exp()
    disjoint = refusals.log_probabilities["given", "prefix_free"].exp()
    for row, prompt in enumerate(PROMPTS):
        each = [probability(prompt, p) for p in ("sorry", "I cannot", "sorry I")]
        assert literal[row].item() == pytest.approx(sum(each), rel=1e-4)
        assert disjoint[row].item() == pytest.approx(sum(each[:2]), rel=1e-4)


def test_each_answer_is_judged_and_none_is_generated_unasked(refusals):
    assert len(refusals.answers) == 6
    assert list(refusals.refuses) == [is_refusal(answer) for answer in refusals.answers]
    quiet = measure_refusal(tiny_model(), TOKENIZER, PROMPTS, phrases=["sorry"], generate=False)
    assert quiet.answers is None and quiet.frame()["refuses"].isna().all()


def test_refusals_have_a_row_per_prompt_and_reduction(refusals):
    table = refusals.frame()
    assert len(table) == 12 and set(table["reduction"]) == {"literal", "prefix_free"}
    np.testing.assert_allclose(table["probability"], np.exp(table["log_probability"]))
    means = refusals.group_means()
    assert len(means) == 6 and means["probability"].between(0, 1).all()


def test_refusals_draw_themselves_and_show_escaped(refusals):
    assert refusals.plot().get_xlabel() == "probability of a refusal"
    plt.close("all")
    assert "<table" in refusals._repr_html_()


def test_no_part_has_a_share_of_a_kernel_that_is_zero():
    tokens = [[2 * row, 2 * row + 1] for row in range(len(PROMPTS))]
    model = tiny_model(tie_word_embeddings=False)
    found = kernel(model, parameters="head", by="layer", tokens=tokens)
    apart = found.parts["observed"] != found.parts["updated"]
    assert (found.parts["norm"] > 0).equals(~apart)
    np.testing.assert_allclose(found.parts["share"], ~apart, rtol=1e-9)


def test_a_probability_above_one_is_drawn_as_any_other(refusals):
    key, values = next(iter(refusals.log_probabilities.items()))
    sums = torch.log(torch.linspace(0.2, 1.7, len(values)).double())
    ax = replace(refusals, log_probabilities={key: sums}, upper={}).plot()
    drawn = np.concatenate([dots.get_offsets()[:, 0] for dots in ax.collections])
    np.testing.assert_allclose(sorted(drawn), sums.exp())
    left, right = ax.get_xlim()
    assert left < drawn.min() and drawn.max() < right
    assert refusals.plot().get_xlim() == pytest.approx((-0.02, 1.02))  # as far as all may reach
    plt.close("all")


def test_phrases_that_hardly_count_are_bounded_unless_all_are_asked_for():
    tokenizer = byte_bpe()
    model = build("gpt2", n_positions=256, vocab_size=len(tokenizer))
    found = measure_refusal(model, tokenizer, PROMPTS, generate=False)
    exact = measure_refusal(model, tokenizer, PROMPTS, generate=False, exact_phrases=True)
    below, every = found.frame(), exact.frame()
    gap = below["upper"] - below["log_probability"]
    assert gap.between(0, 1e-4).all() and (gap > 0).any()
    assert (every["upper"] == every["log_probability"]).all()
    assert (below["log_probability"] <= every["log_probability"] + 1e-6).all()
    assert (every["log_probability"] <= below["upper"] + 1e-6).all()


def test_answers_beside_the_phrases_are_those_alone():
    model, tokenizer, prompts = tiny_model(), TOKENIZER, PROMPTS
    found = measure_refusal(model, tokenizer, prompts, max_new_tokens=8, batch_size=2)
    with evaluating(model):
        encoded = encode(tokenizer, prompts)
        stops = encoded.template.stop_ids(tokenizer)
        expected = [
            answer_batch(model, tokenizer, [ids], max_new_tokens=8, stop_ids=stops)[0].text
            for ids in encoded.input_ids
        ]
    assert list(found.answers) == expected
