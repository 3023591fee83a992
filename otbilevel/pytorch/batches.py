"""Batches of data: read, checked, weighted, and cut into pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

SEEDS = 1_000_003
"""Distance of the seeds of two batches: larger than a batch has samples, so that all pieces have their own."""


@dataclass(frozen=True)
class Batch:
    """Inputs and targets, and the factor of what is computed from them in a sum over batches.

    Attributes
    ----------
    inputs, targets
        Tensors, or tuples or mappings of such, whose first axis counts samples.
    share : float
        The factor.
    seed : int
        Of targets that are drawn.
    number : int
        Which batch it is, or is a piece of.
    """

    inputs: Any
    targets: Any
    share: float
    seed: int
    number: int = 0

    def pieces(self, width: int | None, *, mean: bool) -> Iterator[Batch]:
        """The same in pieces of at most `width` samples, for a loss that is a mean over samples or a sum."""
        count = sample_count(self.inputs)
        if width is None or width >= count:
            yield self
            return
        if isinstance(self.targets, Tensor) and self.targets.shape[0] != count:
            msg = f"a batch of {count} inputs and {self.targets.shape[0]} targets cannot be cut: leave microbatch out"
            raise ValueError(msg)
        for low in range(0, count, width):
            piece = slice(low, min(low + width, count))
            part = (piece.stop - low) / count if mean else 1.0
            yield Batch(take(self.inputs, piece), take(self.targets, piece), part * self.share, self.seed + low, self.number)


def read(data: Any, *, mean: bool, seed: int = 0) -> list[Batch]:
    """All batches; for a loss that is a mean over samples they count by their sizes.

    Raises
    ------
    TypeError, ValueError
        When data is empty, or holds something else than pairs (inputs, targets).
    """
    if isinstance(data, (tuple, list)) and len(data) == 2 and isinstance(data[0], Tensor):  # one batch
        data = [data]
    pairs = []
    for k, batch in enumerate(data):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            msg = f"data must hold pairs (inputs, targets), but item {k} is {type(batch).__name__}"
            raise TypeError(msg)
        pairs.append((batch[0], batch[1]))
    if not pairs:
        msg = "data is empty: give at least one batch (inputs, targets)"
        raise ValueError(msg)
    sizes = [sample_count(inputs) for inputs, _ in pairs]
    if 0 in sizes:
        msg = f"item {sizes.index(0)} of data holds no samples"
        raise ValueError(msg)
    for k, ((_, targets), size) in enumerate(zip(pairs, sizes, strict=True)):
        if isinstance(targets, Tensor) and targets.dim() > 0 and targets.shape[0] % size:
            msg = f"item {k} of data holds {size} inputs and {targets.shape[0]} targets"
            raise ValueError(msg)
    total = sum(sizes)
    return [
        Batch(inputs, targets, size / total if mean else 1.0, seed + SEEDS * k, k)
        for k, ((inputs, targets), size) in enumerate(zip(pairs, sizes, strict=True))
    ]


def sample_count(inputs: Any) -> int:
    """Samples of a batch: the length of its first tensor."""
    first = inputs
    if isinstance(inputs, (tuple, list)) and inputs:
        first = inputs[0]
    elif isinstance(inputs, Mapping) and inputs:
        first = next(iter(inputs.values()))
    if not isinstance(first, Tensor) or first.dim() == 0:
        msg = f"the inputs of a batch must be tensors whose first axis counts samples, got {type(first).__name__}"
        raise TypeError(msg)
    return int(first.shape[0])


def take(values: Any, piece: slice | None) -> Any:
    """Some of the samples; None makes a batch of one of a sample."""
    return _mapped(values, lambda one: one if one is None else one[piece])


def move(values: Any, device: Any) -> Any:
    """To where the model is; what is there already is not copied."""

    def there(one: Any) -> Any:
        if not isinstance(one, Tensor):
            return one
        return one.clone().to(device) if one.is_inference() else one.to(device)

    return _mapped(values, there)


def _mapped(values: Any, function: Callable[[Any], Any]) -> Any:
    """A function of every tensor in tuples, lists and mappings."""
    if isinstance(values, tuple) and hasattr(values, "_fields"):
        return type(values)(*(_mapped(one, function) for one in values))
    if isinstance(values, (tuple, list)):
        return type(values)(_mapped(one, function) for one in values)
    if isinstance(values, Mapping):
        return {name: _mapped(one, function) for name, one in values.items()}
    return function(values)
