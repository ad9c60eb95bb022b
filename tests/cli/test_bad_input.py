"""A user's mistake is one line of every public function, told before anything is computed."""

import warnings
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from typing import Any

import jaxtyping
import pytest
import torch
from architectures import build
from tiny_runs import tiny_tokenizer

import ntkprobe as ntk
from ntkprobe.errors import UserError
from ntkprobe.estimators.dense import Dense
from ntkprobe.estimators.finite_difference import FiniteDifference
from ntkprobe.estimators.forward_mode import ForwardMode
from ntkprobe.estimators.gram import Gram
from ntkprobe.kernel import Probe, norms, top_tokens
from ntkprobe.measurement import Encoded
from ntkprobe.measurement.full_vocabulary import full_vocabulary_norms
from ntkprobe.measurement.influence import predict_step
from ntkprobe.measurement.random_probes import random_probe_norms
from ntkprobe.measurement.verification import verify_pair
from ntkprobe.prompts.templates import RAW

ROWS = ((1, 2, 3), (4, 5))
ESTIMATORS = (Gram(), Dense(), FiniteDifference(step="unit"), ForwardMode())


@cache
def gpt2() -> torch.nn.Module:
    return build("gpt2")


def encoded(*rows: tuple[int, ...]) -> Encoded:
    prompts = ntk.PromptSet(tuple(ntk.Prompt(f"prompt {n}", "normal") for n in range(len(rows))))
    return Encoded(prompts, rows, RAW)


def tensors(rows: Any) -> list[torch.Tensor]:
    return [torch.tensor(row) for row in rows]


def probes(rows: Any) -> list[Probe]:
    return [Probe(ids, torch.tensor([1, 2])) for ids in tensors(rows)]


def kernel(model: Any, rows: Any, **settings: Any) -> Any:
    chosen = dict(top_k=3) | settings
    return ntk.measure_kernel(model, tiny_tokenizer(), encoded(*rows), **chosen)


Call = Callable[..., Any]
KERNELS: dict[str, Call] = {
    "top tokens": kernel,
    "given tokens": lambda m, rows, **s: kernel(m, rows, tokens=[1, 2], **s),
    "full vocabulary": lambda m, rows, **s: kernel(m, rows, full_vocabulary=True, **s),
    "random probes": lambda m, rows, **s: kernel(m, rows, random_probes=4, **s),
    "verify": lambda m, rows, **s: ntk.verify(m, tiny_tokenizer(), encoded(*rows), **s),
}
NORMS: dict[str, Call] = {
    "full_vocabulary_norms": lambda m, rows, **s: full_vocabulary_norms(m, tensors(rows), **s),
    "random_probe_norms": lambda m, rows, **s: random_probe_norms(m, tensors(rows), **s),
}
CALLED: dict[str, Call] = {
    type(each).__name__: lambda m, rows, each=each, **s: each(m, probes(rows), **s)
    for each in ESTIMATORS
}
OTHERS: dict[str, Call] = {
    "measure_activations": lambda m, rows: ntk.measure_activations(
        m, tiny_tokenizer(), encoded(*rows)
    ),
    "measure_refusal": lambda m, rows: ntk.measure_refusal(
        m, tiny_tokenizer(), encoded(*rows), phrases=["sorry"], generate=False
    ),
    "measure_bounds": lambda m, rows: ntk.measure_bounds(
        m, tiny_tokenizer(), encoded(*rows), layer=1, directions=2
    ),
    "influence": lambda m, rows: ntk.influence(m, None, observed=rows, updated=[([1], [2])]),
    "predict_step": lambda m, rows: predict_step(m, None, observed=rows, step={}, tokens="all"),
}
DIFFERENTIATING = KERNELS | NORMS | CALLED
PUBLIC = DIFFERENTIATING | OTHERS


def over(calls: dict[str, Call]) -> Any:
    return pytest.mark.parametrize("call", calls.values(), ids=calls.keys())


@contextmanager
def as_users_have_it() -> Generator[None]:
    """Switch the checks of types off, which only the tests have."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)


def refused(why: str, call: Call, *args: Any, **settings: Any) -> None:
    with as_users_have_it(), pytest.raises(UserError, match=why) as told:
        call(*args, **settings)
    assert "\n" not in str(told.value)


def damaged(row: int) -> torch.nn.Module:
    """Return a model that gives NaN wherever a token is read."""
    model = build("gpt2")
    model.transformer.wte.weight.data[row] = torch.nan
    return model


class TestPrompts:
    @pytest.mark.slow
    @over(PUBLIC)
    def test_good_prompts_are_not_refused(self, call):
        if call is OTHERS["predict_step"]:
            pytest.skip("a step of nothing is refused")
        call(build("gpt2", vocab_size=tiny_size()), ROWS)

    @over(PUBLIC)
    def test_a_prompt_longer_than_the_learned_positions_is_named(self, call):
        refused("prompt 1.* 33 tokens.*context of 32", call, gpt2(), ((1, 2), (1,) * 33))

    @over(KERNELS | NORMS | OTHERS)
    def test_an_empty_prompt_is_refused(self, call):
        refused(r"empty|not empty", call, gpt2(), ((1, 2), ()))

    @over(PUBLIC)
    def test_a_token_outside_the_vocabulary_is_named(self, call):
        refused("prompt 1.* holds a token outside", call, gpt2(), ((1, 2), (48, 1)))

    @over(PUBLIC)
    def test_no_prompts_at_all_are_refused(self, call):
        refused("no prompts", call, gpt2(), ())

    @over(NORMS)
    def test_texts_are_sent_to_where_there_is_a_tokenizer(self, call):
        norms_of = {f: getattr(ntk, f) for f in NORMS}
        which = next(norms_of[name] for name, each in NORMS.items() if each is call)
        refused("prompt 0 is a str.*measure_kernel", which, gpt2(), ["kill", "bake"])
        refused("prompt 0 is a list", which, gpt2(), [[1, 2], [3]])
        refused("prompt 0 is a 2-D tensor", which, gpt2(), [torch.ones(1, 2).long()])

    @pytest.mark.parametrize("prompts", ["abc", None, ntk.Prompt("abc", "normal"), 3])
    @pytest.mark.parametrize("what", ["kernel", "refusal", "activations"])
    def test_one_text_is_no_list_of_letters(self, what, prompts):
        call = getattr(ntk, f"measure_{what}")
        refused("list of texts", call, gpt2(), tiny_tokenizer(), prompts)
        refused("list of texts", ntk.verify, gpt2(), tiny_tokenizer(), prompts)

    def test_what_is_neither_text_nor_prompt_is_named(self):
        refused("prompt 1 is a int", ntk.verify, gpt2(), tiny_tokenizer(), ["a", 1])

    def test_texts_without_a_tokenizer_are_refused(self):
        refused("no tokenizer", ntk.measure_kernel, gpt2(), None, ["a", "b"])

    def test_cotangents_of_another_width_than_the_logits_are_refused(self):
        wrong = Probe(torch.tensor([1, 2]), cotangents=torch.ones(2, 7))
        for estimator in ESTIMATORS:
            refused(r"cotangents \(2, 7\).*48", estimator, gpt2(), [wrong])

    @pytest.mark.parametrize("tokens", [[1, 2], torch.tensor([0.5])])
    def test_what_is_read_must_be_token_ids(self, tokens):
        with as_users_have_it():
            probe = Probe(torch.tensor([1]), tokens)
        for estimator in ESTIMATORS:
            refused("prompt 0 reads a", estimator, gpt2(), [probe])


class TestModels:
    @over(KERNELS | OTHERS)
    def test_the_name_of_a_model_is_no_model(self, call):
        refused("load it first", call, "gpt2", ROWS)

    @over(PUBLIC)
    def test_meta_tensors_are_refused(self, call):
        refused("offloaded", call, build("gpt2").to("meta"), ROWS)

    @over(DIFFERENTIATING)
    def test_linear_layers_quantised_by_torch_are_refused(self, call):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            small = torch.ao.quantization.quantize_dynamic(build("llama"), {torch.nn.Linear})
        refused("q_proj is quantised", call, small, ROWS)

    def test_a_parameter_of_torchao_is_refused(self):
        kind = type(
            "AffineQuantizedTensor", (torch.nn.Parameter,), {"__module__": "torchao.dtypes"}
        )
        model = build("llama")
        model.lm_head.weight = kind(model.lm_head.weight.detach())
        refused(r"lm_head.weight is quantised \(Affine", kernel, model, ROWS)

    @over(DIFFERENTIATING)
    @pytest.mark.parametrize(
        ("block", "why"),
        [
            (torch.inference_mode, "under torch.inference_mode"),
            (lambda: torch.autocast("cpu", torch.bfloat16), "under torch.autocast"),
        ],
    )
    def test_blocks_that_spoil_gradients_are_refused(self, call, block, why):
        model = gpt2()
        with block():
            refused(why, call, model, ROWS)

    @pytest.mark.slow
    @over(DIFFERENTIATING)
    def test_no_grad_is_none_of_them(self, call):
        with torch.no_grad():
            call(gpt2(), ROWS)

    def test_weights_made_in_inference_mode_are_refused(self):
        with torch.inference_mode():
            model = build("gpt2")
        refused("made under torch.inference_mode", kernel, model, ROWS)

    @over(KERNELS)
    def test_a_model_in_training_is_measured_without_dropout_and_trains_on(self, call):
        model = build("gpt2").train()
        call(model, ROWS)
        assert model.training
        refused("call model.eval", Dense(), model, probes(ROWS))


class TestNumbers:
    ROWS = ((1, 2), (7, 3), (3, 4), (5, 7), (2,))

    @over({k: v for k, v in (KERNELS | NORMS).items() if k != "verify"})
    def test_the_prompts_without_finite_logits_are_named(self, call):
        model = build("llama", tie_word_embeddings=False)
        model.model.embed_tokens.weight.data[7] = torch.nan
        refused("^prompts 1, 3 have NaN or infinite logits.*damaged", call, model, self.ROWS)

    def test_they_are_named_across_batches(self):
        model = build("llama", tie_word_embeddings=False)
        model.model.embed_tokens.weight.data[7] = torch.nan
        refused("prompts 1, 3 have", top_tokens, model, tensors(self.ROWS), 3, batch_size=2)

    def test_many_are_counted(self):
        refused("^prompts 0, 1, 2, 3, 4 and 2 more have", kernel, damaged(3), [(1, 2)] * 7)

    def test_verify_names_the_prompt_by_its_number_in_the_set(self):
        model = build("llama", tie_word_embeddings=False)
        model.model.embed_tokens.weight.data[7] = torch.nan
        refused("prompt 2 has", KERNELS["verify"], model, ((1, 2), (3, 4), (3, 7, 1), (5,)))

    def test_half_precision_is_told_of_float32(self):
        model = damaged(3).bfloat16()
        refused("overflow torch.bfloat16; load it in float32", kernel, model, ROWS)

    @over({name: CALLED[name] for name in ("Dense", "FiniteDifference", "ForwardMode", "Gram")})
    def test_an_estimator_called_itself_says_what_to_do(self, call):
        refused("NaN or infinite logits.*another checkpoint", call, damaged(3), self.ROWS)

    @over({name: OTHERS[name] for name in ("measure_activations", "measure_bounds", "influence")})
    def test_other_measurements_name_a_prompt_too(self, call):
        model = build("llama", tie_word_embeddings=False)
        model.model.embed_tokens.weight.data[7] = torch.nan
        refused(r"prompts? (1|3|1, 3) ha(s|ve) NaN", call, model, self.ROWS)


class TestSettings:
    @pytest.mark.parametrize("k", [2.5, "5", None, 0, 49])
    def test_top_k_is_a_whole_number(self, k):
        refused("whole number from 1 to 48", kernel, gpt2(), ROWS, top_k=k)

    @pytest.mark.parametrize("size", [0, -1, 2.5, "4"])
    def test_batch_sizes_are_whole_and_positive(self, size):
        refused("batch_size=.*1 or more", kernel, gpt2(), ROWS, batch_size=size)
        refused("batch_size=.*1 or more", FiniteDifference, batch_size=size)
        refused("batch_size=.*1 or more", ForwardMode, batch_size=size)
        arguments = (gpt2(), tiny_tokenizer(), encoded(*ROWS))
        refused("batch_size=.*1 or more", ntk.measure_activations, *arguments, batch_size=size)

    @pytest.mark.parametrize("probes", [0, 2, 3.5, "8"])
    def test_random_probes_are_three_or_more(self, probes):
        refused("random probes=.*3 or more", kernel, gpt2(), ROWS, random_probes=probes)

    def test_a_step_of_no_length_is_refused(self):
        refused("eps='small'", FiniteDifference, eps="small")

    @over(DIFFERENTIATING)
    def test_a_list_of_selections_is_no_selection(self, call):
        refused("write one text", call, gpt2(), ROWS, parameters=["last:1", "head"])

    @over(KERNELS | NORMS)
    @pytest.mark.parametrize(
        ("given", "why"),
        [(Dense, r"Dense is a class.*Dense\(\)"), ("gramm", "no 'gramm'"), (3, "3 is none of")],
    )
    def test_an_estimator_is_a_name_or_an_instance(self, call, given, why):
        refused(why, call, gpt2(), ROWS, estimator=given)

    @over(NORMS)
    def test_an_estimator_goes_by_its_name(self, call):
        named, given = (call(gpt2(), ROWS, estimator=each) for each in ("dense", Dense()))
        assert torch.equal(*(getattr(each, "norms", each) for each in (named, given)))

    @pytest.mark.parametrize("tokens", [[2.5, 1], [], ["I"], [[1], [2], [3]], 4])
    def test_given_tokens_are_whole_numbers(self, tokens):
        refused("tokens=", kernel, gpt2(), ROWS, tokens=tokens)

    @pytest.mark.parametrize("layer", [0, 3, 1.5, "1"])
    def test_a_layer_is_a_number_of_a_block(self, layer):
        arguments = (gpt2(), tiny_tokenizer(), encoded(*ROWS))
        refused("from 1 to 2", ntk.measure_bounds, *arguments, layer=layer)
        refused("from 1 to 2", ntk.measure_activations, *arguments, layers=[layer])
        refused("layers='last'", ntk.measure_activations, *arguments, layers="last")


class TestReductions:
    def refusal(self, **settings):
        arguments = (build("gpt2", vocab_size=tiny_size()), tiny_tokenizer(), encoded(*ROWS))
        chosen = dict(phrases=["sorry"], generate=False) | settings
        return ntk.measure_refusal(*arguments, **chosen)

    def influence(self, how):
        pairs = dict(observed=ROWS, updated=[([1], [2])], phrases=[(3, 4)], reductions=how)
        return ntk.influence(gpt2(), None, **pairs)

    def test_one_name_is_one_reduction(self):
        assert list(self.refusal(reductions="literal").log_probabilities) == [("given", "literal")]
        assert list(self.influence("prefix_free").refusals) == ["prefix_free"]

    @pytest.mark.parametrize(("how", "why"), [("sum", "no reduction 'sum'"), ((), "no reductions")])
    def test_others_are_refused(self, how, why):
        refused(why, self.refusal, reductions=how)
        refused(why, self.influence, how)

    def test_answers_have_a_length(self):
        refused("max_new_tokens=0", self.refusal, generate=True, max_new_tokens=0)


class TestNothingDepends:
    """A parameter that goes into no logit has the kernel 0, whatever computes it."""

    @pytest.fixture
    def model(self):
        model = build("gpt2")
        model.unused = torch.nn.Parameter(torch.ones(3))
        return model

    @over(CALLED)
    def test_its_kernel_is_zero(self, call, model):
        assert not bool(norms(call(model, ROWS, parameters="re:unused")).any())

    @pytest.mark.parametrize("estimator", ESTIMATORS)
    def test_it_is_verified(self, estimator, model):
        found = verify_pair(estimator, model, tuple(tensors(ROWS)), "re:unused")
        assert found.relative_error == 0 and found.parameters == 3

    def test_a_kernel_that_is_not_zero_is_still_found_wrong(self, model):
        def wrong(model: Any, probes: Any, parameters: Any) -> Any:
            return Dense()(model, probes, "all")

        with pytest.raises(RuntimeError, match="differs"):
            verify_pair(wrong, model, tuple(tensors(ROWS)), "re:unused")


def tiny_size() -> int:
    return len(tiny_tokenizer())
