"""DCR, the contrastive stage before safety alignment (paper section 5, A.2, A.8).

Prompts of one group are drawn together and those of different groups pushed apart at the output of
block `layer`, by the circle loss; everything above that block stays as it is, bit for bit.
"""

from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from inspect import signature
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import Sampler
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback

from ..checkpoints import load_model, load_tokenizer
from ..models.architecture import capture
from ..prompts.prompt_set import PromptSet
from ..prompts.rendering import dated
from .adapters import linear_names, with_lora
from .callbacks import install, quiet, settings_in_one_line
from .config import DCRConfig as DCRConfig
from .contamination import check_overlaps
from .contrast_data import EpochSampler, PromptRows, collate, drawn, encode_prompts
from .data import IGNORED, Pair, digest
from .features import Window, freeze_above, gathered, pool, without_blocks_above
from .generation_settings import leave_out_idle
from .losses import circle_loss, circle_loss_floor, cosine_similarities, pairs
from .runs import Run, located, model_digest, text_digests


class DCRTrainer(Trainer):
    """transformers.Trainer with the contrastive loss; freezes the model's tail when made.

    The pairs are those of a whole optimiser step: of all processes and all accumulated batches, so
    that only batch size times accumulation times processes counts, not how it is divided up.
    Accumulation costs one more forward pass up to the layer, see `features`.
    """

    args: DCRConfig

    def __init__(
        self,
        model: PreTrainedModel,
        args: DCRConfig,
        prompts: PromptSet,
        processing_class: PreTrainedTokenizerBase,
        *,
        corpus: Sequence[Pair] | None = None,
        **trainer: Any,
    ) -> None:
        """Encode the prompts, freeze the tail, and set the trainer up.

        Args:
            model: a causal language model; its `requires_grad` flags are set.
            args: the settings.
            prompts: seemingly toxic and toxic ones; normal ones are left out.
            processing_class: the tokenizer.
            corpus: question-answer pairs for `nll_on="corpus"`.
            **trainer: passed on to transformers' Trainer.

        Raises:
            UserError: for a layer that does not exist, a group without prompts, or missing answers.
        """  # ruff: ignore[docstring-extraneous-exception]
        trained, frozen, tied = freeze_above(model, args.layer)
        rows, self.data_report = encode_prompts(prompts, processing_class, args, corpus)
        self.idle_settings = leave_out_idle(model)
        self.inner = model
        short = "logits_to_keep" in signature(model.forward).parameters
        self._no_logits = {"logits_to_keep": 1} if short else {}
        adapted = self._with_adapter(model, args) if args.lora_rank else model
        with settings_in_one_line():
            super().__init__(
                model=adapted,
                args=args,
                train_dataset=rows,
                data_collator=lambda batch: collate(batch, processing_class),
                processing_class=processing_class,
                **trainer,
            )
        if args.lora_rank:
            frozen += trained
            trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        self.parameter_report = {"trained": trained, "frozen": frozen, "tied_embedding": tied}
        # Our loss is a mean that the Trainer has to divide by the accumulation steps.
        self.model_accepts_loss_kwargs = False
        self._sums: dict[str, float] = {}
        self._window: Window | None = None
        install(self, "dcr", args.save_at)

    @staticmethod
    def _with_adapter(model: PreTrainedModel, args: DCRConfig) -> nn.Module:
        """Return the model with LoRA on the blocks up to the loss."""
        return with_lora(
            model,
            args.lora_targets or sorted(linear_names(model, args.layer)),
            rank=args.lora_rank,
            alpha=args.lora_alpha,
            dropout=args.lora_dropout,
            seed=args.seed,
            layers=args.layer,
        )

    def _get_train_sampler(self, *_: Any, **__: Any) -> Sampler:
        """Return the order of the prompts, the same on every process."""
        assert isinstance(self.train_dataset, PromptRows)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        return EpochSampler(
            self.train_dataset.groups,
            self.args.train_batch_size
            * self.args.world_size
            * self.args.gradient_accumulation_steps,
            balanced=self.args.sampling == "balanced",
            seed=seed,
        )

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> tuple[list, Any]:
        """Return the batches of the next optimiser step, and keep them for their common pairs."""
        batches, items = super().get_batch_samples(*args, **kwargs)
        self._window = Window(batches) if batches else None
        return batches, items

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """Return L_circle + lambda NLL of the optimiser step that a batch is part of.

        Args:
            model: the model, wrapped or not.
            inputs: a batch of `contrast_data.collate`.
            return_outputs: also return the features.
            num_items_in_batch: not used.

        Returns:
            The loss, or `(loss, {"features": …})`.
        """
        window = self._window or Window([inputs])
        window.look_ahead(lambda batch: self._features(model, self._prepare_inputs(batch))[:2])
        whole = self.args.nll_weight > 0
        with window.turn():
            own, own_sides, logits = self._features(model, inputs, whole=whole)
        self._window = None if window.used_up else window
        features, sides = window.joined(own, own_sides)
        circle, floor = self.circle_and_floor(features, sides)
        nll = self._nll(logits, inputs["labels"], window) if whole else circle.new_zeros(())
        with torch.no_grad():
            self._note(circle - floor, nll, features, sides)
        loss = circle + self.args.nll_weight * nll
        return (loss, {"features": features}) if return_outputs else loss

    def _features(
        self, model: nn.Module, batch: dict[str, Tensor], whole: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return pooled features and groups of all processes' prompts, and this one's logits.

        Args:
            model: the model, wrapped or not.
            batch: of `contrast_data.collate`.
            whole: run the whole model; else it ends at block `layer`, and the logits mean nothing.
        """
        ours = ("labels", "groups", "ends")
        tokens: dict[str, Any] = {name: value for name, value in batch.items() if name not in ours}
        with ExitStack() as stack:
            outputs = stack.enter_context(capture(self.inner, self.args.layer))
            if not whole:
                stack.enter_context(without_blocks_above(self.inner, self.args.layer))
                tokens |= self._no_logits
            logits = model(**tokens, use_cache=False).logits
        prompts = batch["groups"] >= 0  # the others are the corpus
        features = pool(outputs[0][prompts], batch["ends"][prompts], self.args.pooling)
        sides = gathered(batch["groups"][prompts], self.accelerator)
        return gathered(features, self.accelerator), sides, logits

    def circle_and_floor(self, features: Tensor, sides: Tensor) -> tuple[Tensor, Tensor]:
        """Return the circle loss of a step's prompts, and the least that it can be.

        Args:
            features: pooled, of all processes' prompts.
            sides: the prompts' groups.
        """
        args = self.args
        shape: dict[str, Any] = {
            "margin": args.margin,
            "scale": args.scale,
            "weights": args.weights,
        }
        loss = circle_loss(features, sides, detach=args.detach, **shape)
        return loss, circle_loss_floor(sides, **shape)

    def _nll(self, logits: Tensor, labels: Tensor, window: Window) -> Tensor:
        """Return a batch's share in the mean negative log-likelihood of the step's tokens."""
        targets = labels[:, 1:]
        total = F.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(),
            targets.flatten(),
            ignore_index=IGNORED,
            reduction="sum",
        )
        count = self.accelerator.reduce(window.predicted.to(labels.device), reduction="sum")
        # DistributedDataParallel averages over processes, as does the Trainer's log; the Trainer
        # divides by the number of batches.
        parts = self.accelerator.num_processes * len(window.batches)
        return total * parts / count.clamp(min=1)

    def _note(self, excess: Tensor, nll: Tensor, features: Tensor, sides: Tensor) -> None:
        """Add up what the next line of the log shows."""
        similarities = cosine_similarities(features)
        positive, negative = pairs(sides)
        values = {
            "circle_excess": excess,
            "nll": nll,
            "positive_similarity": similarities[positive].mean(),
            "negative_similarity": similarities[negative].mean(),
        }
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + float(value)
        self._sums["batches"] = self._sums.get("batches", 0.0) + 1

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log with the parts of the loss: the circle loss as its excess over the floor."""
        if "loss" in logs and self._sums:
            batches = self._sums.pop("batches")
            logs |= {name: value / batches for name, value in self._sums.items()}
            self._sums = {}
        super().log(logs, start_time)

    def finished_model(self) -> PreTrainedModel:
        """Return the trained model without any adapter: LoRA is merged into its weights."""
        if self.args.lora_rank:
            return self.model.merge_and_unload()  # type: ignore[union-attr, operator]
        return self.inner


def train_dcr(
    model: str | Path,
    prompts: PromptSet,
    config: DCRConfig,
    *,
    corpus: Sequence[Pair] | None = None,
    held_out: Mapping[str, Iterable[str]] | None = None,
    sources: dict[str, Any] | None = None,
    callbacks: Sequence[TrainerCallback] = (),
) -> Path:
    """Run the contrastive stage in `config.output_dir`, going on where an earlier call stopped.

    Args:
        model: a folder, or a name on the hub.
        prompts: seemingly toxic and toxic ones.
        config: the settings.
        corpus: question-answer pairs for `nll_on="corpus"`.
        held_out: prompts of later stages and evaluations by name, compared with these.
        sources: where the data came from, for the record.
        callbacks: for the Trainer, such as `ntkprobe.TrajectoryCallback`.

    Returns:
        The folder `final` with the trained model, an ordinary Hugging Face checkpoint.

    Raises:
        UserError: for a mistake in the settings or data, or a folder that holds another run.
    """  # ruff: ignore[docstring-extraneous-exception]
    start = str(model)
    digests = {"prompts": prompts.digest} | model_digest(start)
    digests |= text_digests(start, config.template)
    digests |= {"corpus": digest(corpus)} if corpus else {}
    inputs = {"stage": "dcr", "model": start, **(sources or {}), "digests": digests}
    run = Run(config, inputs)
    if run.finished:
        return run.final
    chosen = drawn(prompts, config)
    check_overlaps(run, {"dcr": [p.text for p in chosen], **(held_out or {})}, strict=config.strict)
    with quiet(), run.stage("load"):
        network = load_model(located(start), config.loading())
        tokenizer = load_tokenizer(located(start), local=False)
    with quiet(), run.stage("encode"), dated(run.template_date):
        trainer = DCRTrainer(
            network, config, prompts, tokenizer, corpus=corpus, callbacks=list(callbacks)
        )
    _describe(run, trainer)
    if trainer.idle_settings:
        run.note(
            f"generation_config.json: {', '.join(trainer.idle_settings)} left out of what is "
            "saved: nothing is generated by them, and transformers does not save them"
        )
    assert isinstance(trainer.train_dataset, PromptRows)
    table = (
        chosen.take(trainer.train_dataset.places)
        .frame()
        .rename(columns={"prompt": "row", "text": "prompt"})
    )
    run.begin(table, data=trainer.data_report, parameters=trainer.parameter_report)
    run.train(trainer)
    run.finish(trainer.finished_model(), tokenizer)
    return run.final


def _describe(run: Run, trainer: DCRTrainer) -> None:
    """Say what will be trained, on what."""
    data, sizes = trainer.data_report, trainer.parameter_report
    tied = "; the embedding is tied to the head and frozen with it"
    run.tell(
        f"dcr: {data['seemingly_toxic']} seemingly toxic and {data['toxic']} toxic prompts of "
        f"{data['prompt_tokens'][0]} to {data['prompt_tokens'][1]} tokens, template "
        f"{data['template']}; {sizes['trained']:,} parameters trained, {sizes['frozen']:,} frozen"
        + (tied if sizes["tied_embedding"] else "")
    )
    for line in data["template_remarks"]:
        run.note(line)
    if data["too_long"]:
        run.note(f"{data['too_long']} prompts longer than {run.config.max_length} tokens left out")
    if data.get("corpus_empty"):
        run.note(f"corpus: {data['corpus_empty']} pairs without question or answer left out")
    if data.get("corpus_cut"):
        run.note(f"corpus: {data['corpus_cut']} pairs cut to {run.config.max_length} tokens")
