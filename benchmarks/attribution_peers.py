"""What other packages say of the same training pairs and prompts, for `attribution.py`.

`peers/bin/python benchmarks/attribution_peers.py`, in an environment that has the project and
`requirements-attribution-peers.txt`, after `attribution.py` has trained: the scores are left in its
folder, where it takes them up when it is run again. Ours are made here too, so that the seconds of
all are measured alike: processor time of one thread, one method after the other, from loading the
model to the scores. `--method` runs some again.

All get the run's LoRA parameters and log P(refuse) of the prompts; beyond that each has its
package's defaults. Not so: TRAK's projection has 256 dimensions, since with its 2,048 and 400 pairs
XᵀX has no inverse; LoGra's has 16 × 16 in place of 64 × 64: the adapter's matrices are 8 by 128.
Scores are for the change of log P(refuse), larger where a pair raises it.
"""

import argparse
import logging
import sys
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from tempfile import TemporaryDirectory
from time import process_time
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from support.attribution_world import BASE, World, in_order, whole_run
from support.peer_readings import Readings, Sample, pair_row, refusal_row, samples, stacked
from torch import Tensor
from torch.utils.data import DataLoader

import ntkprobe as ntk
from ntkprobe.attribution import AttributionSettings
from ntkprobe.attribution.observed import observe
from ntkprobe.attribution.training_run import TrainingRun
from ntkprobe.checkpoints import LoadSettings, load_model, load_tokenizer
from ntkprobe.checkpoints.adapters import adapted
from ntkprobe.storage import replacing, write_json

BATCH, QUERIES = 16, 5
NAMES = ("ids", "positions", "mask", "source", "token", "member")


class Case:
    """The run as samples.

    Attributes:
        pairs: of the world, in its order.
        prompts: that are explained.
        known: the pairs as tokens.
        asked: the prompts as tokens.
        phrases: of refusal, as tokens.
        checkpoints: of the run.
    """

    def __init__(self, world: World) -> None:
        self.world, self.folder = world, whole_run(world)
        self.run = TrainingRun(self.folder)
        tokenizer = load_tokenizer(BASE)
        encoded = {(p.pair.prompt, p.pair.response): p for p in self.run.encoded(tokenizer)}
        known = [encoded[pair.prompt, pair.response] for pair in world.pairs]
        self.known = known
        self.pairs = samples([pair_row(p.input_ids, p.labels) for p in known])
        template = self.run.template(tokenizer)
        seen = observe(world.explained, tokenizer, template, self.run.config, AttributionSettings())
        self.asked, self.phrases = [ids.tolist() for ids in seen.input_ids], seen.phrases
        rows = [refusal_row(ids, self.phrases) for ids in self.asked]
        self.prompts = samples(rows)
        self.checkpoints = [each.checkpoint for each in self.run.checkpoints()]
        self._open = ExitStack()  # adapters are there for as long as it is

    def model(self, place: int = -1) -> Readings:
        """Return a checkpoint, only its adapter to be differentiated."""
        base = load_model(BASE, LoadSettings(attn_implementation="eager"))
        model = self._open.enter_context(adapted(base, self.checkpoints[place].path, merge=False))
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("lora_" in name)
        return Readings(model).eval()

    def layers(self, model: Readings) -> list[str]:
        """Return the names of the adapter's modules."""
        return [
            n for n, _ in model.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))
        ]

    def rates(self) -> Tensor:
        """Return the learning rate at each checkpoint."""
        rates = self.run.learning_rates()
        return torch.tensor([rates[min(c.step, len(rates) - 1)] for c in self.checkpoints])


def loaders(case: Case, batch: int = BATCH) -> tuple[DataLoader[Any], DataLoader[Any]]:
    """Return the pairs and the prompts as batches of tuples."""
    tuples = [[tuple(one[n] for n in NAMES) for one in some] for some in (case.pairs, case.prompts)]
    return DataLoader(tuples[0], batch_size=batch), DataLoader(tuples[1], batch_size=QUERIES)  # type: ignore[arg-type]


def functional(model: Readings, sign: float) -> Callable[..., Tensor]:
    """Return a sample's reading as a function of parameters, for packages that use torch.func."""

    def read(parameters: dict[str, Tensor], sample: tuple[Tensor, ...]) -> Tensor:
        given = {name: value[None] for name, value in zip(NAMES, sample, strict=True)}
        return sign * torch.func.functional_call(model, parameters, (), given)[0]

    return read


# Methods, `[prompts, pairs]` each


def dense(case: Case, cosine: bool) -> np.ndarray:
    """Gradients in full, from torch.func."""
    model = case.model()
    chosen = {n: p.detach() for n, p in model.named_parameters() if p.requires_grad}
    each = torch.func.vmap(torch.func.grad(functional(model, 1.0)), (None, 0))
    found = []
    for loader in reversed(loaders(case)):
        parts = [each(chosen, tuple(batch)) for batch in loader]
        found.append(torch.cat([torch.cat([g.flatten(1) for g in p.values()], 1) for p in parts]))
    asked, trained = found
    if cosine:
        asked, trained = (torch.nn.functional.normalize(g) for g in (asked, trained))
    return (asked @ trained.T).numpy()


def dattri_tracin(case: Case) -> np.ndarray:
    """TracIn with dattri: gradients projected to 512, learning rates at the checkpoints."""
    from dattri.algorithm.tracin import TracInAttributor
    from dattri.task import AttributionTask

    model = case.model()
    states = [case.model(place).state_dict() for place in range(len(case.checkpoints))]
    task = AttributionTask(functional(model, -1.0), model, states, functional(model, -1.0))
    method = TracInAttributor(task, case.rates(), normalized_grad=False)
    with torch.no_grad():
        return method.attribute(*loaders(case, 100)).T.numpy()


def dattri_logra(case: Case) -> np.ndarray:
    """LoGra with dattri: 16 × 16 for each module, empirical Fisher."""
    from dattri.algorithm.logra import LoGraAttributor
    from dattri.task import AttributionTask

    class WithLoss(Readings):
        def forward(self, **batch: Tensor) -> Any:
            return SimpleNamespace(loss=-super().forward(**batch).sum())

    def loss(model: WithLoss, batch: Sample, device: str) -> Tensor:
        return model(**batch).loss

    model = WithLoss(case.model().model)

    task = AttributionTask(loss, model, model.state_dict(), loss)
    method = LoGraAttributor(task, case.layers(model), proj_dim=256)
    trained = DataLoader(case.pairs, batch_size=BATCH)  # type: ignore[arg-type]
    method.cache(trained)
    asked = DataLoader(case.prompts, batch_size=QUERIES)  # type: ignore[arg-type]
    return method.attribute(trained, asked).T.numpy()


def trak(case: Case) -> np.ndarray:
    """TRAK with traker, on the log-odds of answers and of refusing."""
    from trak import TRAKer
    from trak.modelout_functions import AbstractModelOutput

    class LogOdds(AbstractModelOutput):
        def __init__(self) -> None:
            pass

        @staticmethod
        def get_output(model: Any, weights: Any, buffers: Any, *sample: Tensor) -> Tensor:
            value = functional(model, 1.0)({**weights, **buffers}, sample)
            return value - torch.log1p(-value.exp().clamp(max=1 - 1e-6))

        def get_out_to_loss_grad(
            self, model: Any, weights: Any, buffers: Any, batch: Any
        ) -> Tensor:
            given = dict(zip(NAMES, batch, strict=True))
            value = torch.func.functional_call(model, {**weights, **buffers}, (), given)
            return (1 - value.exp()).clone().detach().unsqueeze(-1)

    model = case.model()
    names = [n for n, p in model.named_parameters() if p.requires_grad]
    with TemporaryDirectory() as folder:
        method = TRAKer(
            model=model,
            task=LogOdds(),
            train_set_size=len(case.pairs),
            save_dir=folder,
            device="cpu",
            proj_dim=256,
            use_half_precision=False,
            grad_wrt=names,
            logging_level=logging.WARNING,
        )
        method.load_checkpoint(model.state_dict(), model_id=0)
        trained, asked = loaders(case)
        for batch in trained:
            method.featurize(batch=batch, num_samples=len(batch[0]))
        method.finalize_features()
        method.start_scoring_checkpoint("asked", model.state_dict(), 0, len(case.prompts))
        for batch in asked:
            method.score(batch=batch, num_samples=len(batch[0]))
        return np.array(method.finalize_scores("asked")).T.copy()


def ekfac(case: Case) -> np.ndarray:
    """EK-FAC with kronfluence, on the adapter's modules."""
    from kronfluence.analyzer import Analyzer, prepare_model
    from kronfluence.task import Task

    model = case.model()
    tracked = case.layers(model)

    class Reading(Task):
        def compute_train_loss(self, batch: Any, model: Any, sample: bool = False) -> Tensor:
            return -model(**batch, sampled=sample).sum()

        def compute_measurement(self, batch: Any, model: Any) -> Tensor:
            return -model(**batch).sum()

        def get_influence_tracked_modules(self) -> list[str]:
            return tracked

    task = Reading()
    prepared = prepare_model(model, task)
    with TemporaryDirectory() as folder:
        method = Analyzer("peers", prepared, task, cpu=True, output_dir=folder, disable_tqdm=True)
        method.fit_all_factors("ekfac", case.pairs, per_device_batch_size=BATCH)  # type: ignore[arg-type]
        method.compute_pairwise_scores(
            "scores",
            "ekfac",
            query_dataset=case.prompts,  # type: ignore[arg-type]
            train_dataset=case.pairs,  # type: ignore[arg-type]
            per_device_query_batch_size=QUERIES,
            per_device_train_batch_size=BATCH,
        )
        return method.load_pairwise_scores("scores")["all_modules"].float().numpy()


def bergson(case: Case) -> np.ndarray:
    """Gradients in memory with bergson, unprojected as its `IndexConfig` has it.

    It takes losses of rows of tokens: ∇ log P(refuse) is the sum over phrases of their shares in P
    times ∇ log π(phrase), and the shares go into its column `advantage`.
    """
    from bergson import CollectorComputer, GradientProcessor, IndexConfig, InMemoryCollector
    from datasets import Dataset

    readings = case.model()
    model: Any = readings.model
    base = model.base_model
    chosen = {
        n for n, _ in base.named_modules() if n.endswith(("lora_A.default", "lora_B.default"))
    }

    def gradients(rows: list[dict[str, Any]]) -> Tensor:
        with TemporaryDirectory() as folder:
            config = IndexConfig(run_path=f"{folder}/run")
            config.partial_run_path.mkdir()
            data = Dataset.from_list(rows)
            collector = InMemoryCollector(
                model=base,
                data=data,
                cfg=config,
                processor=GradientProcessor(),
                target_modules=chosen,
            )
            order = range(0, len(rows), BATCH)
            batches = [list(range(i, min(i + BATCH, len(rows)))) for i in order]
            run = CollectorComputer(model, data, collector=collector, batches=batches, cfg=config)
            run.run_with_collector_hooks()
            return torch.cat([collector.gradients[name] for name in sorted(chosen)], 1).float()

    asked = []
    for ids in case.asked:
        rows = [
            {"input_ids": [*ids, *said], "labels": [-100] * len(ids) + list(said)}
            for said in case.phrases
        ]
        each = samples([pair_row(row["input_ids"], row["labels"]) for row in rows])
        with torch.no_grad():
            shares = readings(**stacked(each)).softmax(0).tolist()
        asked += [{**row, "advantage": w} for row, w in zip(rows, shares, strict=True)]
    trained = [{"input_ids": list(p.input_ids), "labels": list(p.labels)} for p in case.known]
    queries = gradients(asked).unflatten(0, (len(case.asked), -1)).sum(1)
    return (queries @ gradients(trained).T).numpy()


def embeddings(case: Case) -> np.ndarray:
    """Cosine of mean last hidden states of the base, times the sign of the pair's source."""
    base = load_model(BASE, LoadSettings(attn_implementation="eager")).eval()
    tokenizer = load_tokenizer(BASE)

    def states(texts: list[str]) -> Tensor:
        found = []
        for text in texts:
            ids = torch.tensor([tokenizer(text)["input_ids"]])
            with torch.no_grad():
                found.append(base.model(input_ids=ids).last_hidden_state[0].mean(0))
        return torch.nn.functional.normalize(torch.stack(found))

    asked = states([prompt.text for prompt in case.world.explained])
    return (asked @ states([pair.prompt for pair in case.world.pairs]).T).numpy() * case.world.signs


def similarity(case: Case) -> np.ndarray:
    """Cosine of TF-IDF vectors of prompts, times the sign of the pair's source."""
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer().fit([pair.prompt for pair in case.world.pairs])
    asked = vectors.transform([prompt.text for prompt in case.world.explained])
    trained = vectors.transform([pair.prompt for pair in case.world.pairs])
    return (asked @ trained.T).toarray() * case.world.signs


def ours(case: Case, **options: Any) -> np.ndarray:
    """`ntk.attribute`."""
    found = ntk.attribute(case.folder, prompts=case.world.explained, **options)
    assert found is not None
    return in_order(case.world, found)


METHODS: dict[str, Callable[[Case], np.ndarray]] = {
    "ours, recorded steps": lambda case: ours(case, over="steps"),
    "ours, checkpoints": ours,
    "ours, checkpoints, mean loss of a pair": lambda case: ours(case, loss="mean"),
    "ours, checkpoints, sketch": lambda case: ours(case, estimator="sketch"),
    "ours, final checkpoint": lambda case: ours(case, over="final"),
    "gradient dot product (torch.func)": lambda case: dense(case, False),
    "gradient cosine (torch.func)": lambda case: dense(case, True),
    "EK-FAC (kronfluence)": ekfac,
    "TRAK (traker)": trak,
    "gradient dot product (bergson)": bergson,
    "TracIn (dattri)": dattri_tracin,
    "LoGra (dattri)": dattri_logra,
    "TF-IDF similarity, sign of the source": similarity,
    "embedding similarity, sign of the source": embeddings,
    "sign of the source alone": lambda case: np.tile(case.world.signs, (len(case.prompts), 1)),
}


def agree(case: Case) -> None:
    """Compare the samples' log P(refuse) with ours: the same question is asked of all."""
    with torch.no_grad():
        mine = case.model()(**stacked(case.prompts))
    found = ntk.attribute(case.folder, prompts=case.world.explained, over="final")
    assert found is not None
    np.testing.assert_allclose(mine.numpy(), found.values, rtol=1e-3)


def main() -> None:
    """Score with every method that has not been run yet."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    World.add_options(parser)
    parser.add_argument("--method", action="append", choices=METHODS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    case = Case(World.of(options))
    agree(case)
    folder = case.world.folder / "scores"
    for name in options.method or METHODS:
        start = process_time()
        try:
            scores = METHODS[name](case)
        except Exception as error:  # a package that fails is told of, and the others go on
            traceback.print_exc()
            write_json(folder / f"{slug(name)}.failed.json", {"method": name, "why": repr(error)})
            continue
        seconds = process_time() - start
        with replacing(folder / f"{slug(name)}.npy") as hidden, hidden.open("wb") as file:
            np.save(file, np.asarray(scores, dtype=np.float32))
        write_json(folder / f"{slug(name)}.json", {"method": name, "seconds": seconds})
        print(f"{name}: {seconds:.1f} s", file=sys.stderr)


def slug(name: str) -> str:
    """Return a method's name as a file's."""
    return "".join(c if c.isalnum() else "-" for c in name.lower())


if __name__ == "__main__":
    main()
