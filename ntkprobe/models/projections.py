"""Random projections of gradients that keep inner products on average, a pair for each matrix.

A gradient G of a matrix is projected on both sides apart, P G Qᵀ, with independent random signs
over √p in P, `[p, rows]`, and over √q in Q, `[q, columns]`: E ⟨P G Qᵀ, P H Qᵀ⟩ = ⟨G, H⟩, because
E PᵀP and E QᵀQ are identities. It costs what it costs to project activations and their gradients
(LoGra, arXiv 2405.13954). A side that is no longer than the projection is kept as it is, exactly.
Several independent projections, the parts, tell how far an estimate is off.
"""

from hashlib import sha256

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import UserError
from .gradients import Factors, Gradients, matrix_shape
from .projection_settings import ProjectionSettings as ProjectionSettings


class Projections:
    """The projections of the parameters of one model.

    Args:
        chosen: θ by name.
        settings: their sizes.
        salt: what else the signs depend on, such as a checkpoint's step.

    Raises:
        UserError: if a projection is larger than what it is to make smaller.
    """

    def __init__(
        self, chosen: dict[str, nn.Parameter], settings: ProjectionSettings, salt: str = ""
    ) -> None:
        self.settings, self.salt = settings, salt
        self.shapes = {name: matrix_shape(parameter) for name, parameter in chosen.items()}
        self._signs: dict[tuple[str, int], tuple[Tensor, Tensor]] = {}
        for name, shape in self.shapes.items():
            side, own = settings.side_of(name)
            if own and side > max(shape):
                raise UserError(
                    f"the projection of {name} has side {side}, the layer only "
                    f"{shape[0]} × {shape[1]}: give {max(shape)} at most"
                )
        if not any(max(shape) > settings.side_of(n)[0] for n, shape in self.shapes.items()):
            longest = max(max(shape) for shape in self.shapes.values())
            raise UserError(
                f"a projection with side {settings.side} is larger than every layer (the longest "
                f"side is {longest}): give a smaller side, or compute exactly"
            )

    @property
    def size(self) -> int:
        """Features of one part."""
        return sum(p * q for p, q in map(self._sides, self.shapes))

    def __call__(self, gradients: Gradients) -> Float[Tensor, "b parts size"]:
        """Return the features of samples, in float32 at least; 0 where nothing depends on θ."""
        parts = [self._part(gradients, part) for part in range(self.settings.parts)]
        return torch.stack(parts, 1)

    def _part(self, gradients: Gradients, part: int) -> Float[Tensor, "b size"]:
        found = {n: self._projected(n, uses, part) for n, uses in gradients.items() if uses}
        one = next(iter(found.values()))  # of the samples' number, on their device
        unused = {n: one.new_zeros(len(one), p * q) for n in gradients for p, q in [self._sides(n)]}
        return torch.cat([{**unused, **found}[name] for name in gradients], 1)

    def _projected(self, name: str, uses: list[Factors], part: int) -> Float[Tensor, "b pq"]:
        """Return the features of one parameter."""
        rows, columns = self._of(name, part)
        total = torch.stack([use.projected(rows, columns).flatten(1) for use in uses]).sum(0)
        return total if total.dtype == torch.float64 else total.float()

    def _sides(self, name: str) -> tuple[int, int]:
        side, _ = self.settings.side_of(name)
        rows, columns = self.shapes[name]
        return min(side, rows), min(side, columns)

    def _of(self, name: str, part: int) -> tuple[Tensor, Tensor]:
        """Return the two projections of a parameter for one part, drawn once."""
        if (name, part) not in self._signs:
            key = f"{self.settings.seed}/{self.salt}/{name}/{part}"
            seed = int.from_bytes(sha256(key.encode()).digest()[:7], "big")
            generator = torch.Generator().manual_seed(seed)
            sides = zip(self._sides(name), self.shapes[name], strict=True)
            rows, columns = (_signs(p, n, generator) for p, n in sides)
            self._signs[name, part] = rows, columns
        return self._signs[name, part]


def _signs(size: int, length: int, generator: torch.Generator) -> Float[Tensor, "size length"]:
    """Return random signs over √size; the identity where nothing would get smaller."""
    if size >= length:
        return torch.eye(length)
    return (2.0 * torch.randint(0, 2, (size, length), generator=generator) - 1) / size**0.5
