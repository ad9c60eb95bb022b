"""Peers from PyPI, those that are installed: `pip install ntkprobe[peers]` brings two.

neural-tangents needs JAX 0.4.25 and NumPy below 2, so an environment of its own.
"""

import importlib
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

from ntkprobe.estimators.forward_mode import differentiable_forwards
from ntkprobe.kernel import Probe, last_logits

from .plain import Method, Outcome, timed


def installed() -> dict[str, Method]:
    """Return the methods of the packages that are installed."""
    return {name: method for name, (package, method) in _PEERS.items() if find_spec(package)}


class Read(nn.Module):
    """What the probes read, as a function of their numbers: the shape of data that peers expect."""

    def __init__(self, model: nn.Module, probes: Sequence[Probe]) -> None:
        super().__init__()
        self.model, self.probes = model, probes

    def forward(self, numbers: Tensor) -> Tensor:
        """Return the values read of these probes, `[batch, k]`."""
        some = [self.probes[number] for number in numbers.tolist()]
        logits = last_logits(self.model, [probe.input_ids for probe in some])
        return torch.stack([probe.read(z) for probe, z in zip(some, logits, strict=True)])


def curvlinops(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return J Jᵀ applied to the identity, by curvlinops' matrix-free operators."""
    operators = importlib.import_module("curvlinops")
    n, k = len(probes), len(probes[0])
    data = [(torch.tensor([a]), torch.zeros(1, k)) for a in range(n)]

    def operator(kind: str) -> Any:
        reader, parameters = Read(model, probes), list(model.parameters())
        return getattr(operators, kind)(reader, parameters, data, check_deterministic=False)

    def apply() -> Tensor:
        with differentiable_forwards(model):
            both = operator("JacobianLinearOperator") @ operator("TransposedJacobianLinearOperator")
            return torch.as_tensor(both @ torch.eye(n * k)).detach()

    seconds, found = timed(apply)
    return Outcome(seconds, found.double().view(n, k, n, k))


def nngeometry(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
    """Return NNGeometry's Gram matrix."""
    collection = importlib.import_module("nngeometry.layercollection").LayerCollection
    backend = importlib.import_module("nngeometry.backend").TorchHooksJacobianBackend
    gram = importlib.import_module("nngeometry.object").GramMatrix
    numbers = torch.arange(len(probes))
    data = torch.utils.data.TensorDataset(numbers, torch.zeros(len(probes)))
    loader = torch.utils.data.DataLoader(data, batch_size=len(probes))

    def apply() -> Tensor:
        layers = collection.from_model(model)
        generator = backend(layers, model=model, function=Read(model, probes))
        return gram(loader, generator).get_dense_tensor()

    seconds, found = timed(apply)
    return Outcome(seconds, found.permute(1, 0, 3, 2).double())


def neural_tangents(implementation: int) -> Callable[[nn.Module, Sequence[Probe]], Outcome]:
    """Return neural-tangents' kernel of a rewrite of the model in JAX, compiled beforehand."""

    def run(model: nn.Module, probes: Sequence[Probe]) -> Outcome:
        rewrite = importlib.import_module("support.qwen2_in_jax")
        kernel, arguments = rewrite.compiled(model, probes, implementation)
        compiling, _ = timed(lambda: kernel(*arguments))
        seconds, found = timed(lambda: kernel(*arguments))
        note = f"and {compiling - seconds:.0f} s to compile"
        return Outcome(seconds, found.permute(0, 2, 1, 3).double(), note)

    return run


_PEERS: dict[str, tuple[str, Method]] = {
    "curvlinops": ("curvlinops", curvlinops),
    "NNGeometry": ("nngeometry", nngeometry),
    "neural-tangents, contraction": ("neural_tangents", neural_tangents(1)),
    "neural-tangents, structured": ("neural_tangents", neural_tangents(3)),
}
