"""The requests of a run, made before it begins: from samples, or out of thin air. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from headrace.answers import ModelMetadata, TensorMetadata
from headrace.messages import infer_request
from headrace.tensors import DATATYPES

Array: TypeAlias = npt.NDArray[Any]
Sample: TypeAlias = Mapping[str, Array]
"""One row of each input, without the batch dimension; the whole input where there is none."""

SYNTHETIC_REQUESTS = 256
SYNTHETIC_BYTES = 64 * 2**20
"""Different synthetic requests, at most so many and together about so large."""

DEFAULT_LENGTH = 16
"""Of dynamic dimensions, and in words of texts, where nothing else is asked for."""

WORDS = ("water", "flows", "down", "the", "channel", "and", "turns", "a", "wheel", "every", "night")


@dataclass(frozen=True, slots=True)
class Lengths:
    """A dynamic dimension: `low` to `high`, both included, each length as likely as any other.

    Raises:
        ValueError: there is no such length.
    """

    low: int
    high: int

    def __post_init__(self) -> None:
        if not 1 <= self.low <= self.high:
            raise ValueError(f"expected lengths from 1 up, got {self}")

    def __str__(self) -> str:
        return str(self.low) if self.low == self.high else f"{self.low}..{self.high}"

    def at(self, quantile: float) -> int:
        """The length below which a share `quantile` (0 to less than 1) of all lengths lies."""
        return self.low + int(quantile * (self.high - self.low + 1))


Shapes: TypeAlias = Mapping[str, Sequence[Lengths]]
"""For each input, its dynamic dimensions in turn; of a BYTES input the words in each text."""


def parse_shape(text: str) -> tuple[str, tuple[Lengths, ...]]:
    """`INPUT:LENGTH[,LENGTH...]`, each LENGTH a number or `LOW..HIGH`.

    Raises:
        ValueError: it is nothing of the kind.
    """
    name, _, lengths = text.rpartition(":")
    try:
        if not name:
            raise ValueError
        parsed = []
        for item in lengths.split(","):
            low, spread, high = item.partition("..")
            parsed.append(Lengths(int(low), int(high if spread else low)))
    except ValueError as error:
        why = f" ({error})" if "lengths" in str(error) else ""
        raise ValueError(f"expected INPUT:LENGTH or INPUT:LOW..HIGH, got '{text}'{why}") from None
    return name, tuple(parsed)


def check_shapes(metadata: ModelMetadata, batched: bool, shapes: Shapes) -> None:
    """Check that there are such inputs, with so many dynamic dimensions.

    Raises:
        ValueError: there are not.
    """
    tensors = {tensor.name: tensor for tensor in metadata.inputs}
    for name, lengths in shapes.items():
        if name not in tensors:
            raise ValueError(
                f"model '{metadata.name}' has no input '{name}'; it takes {', '.join(tensors)}"
            )
        tensor = tensors[name]
        if tensor.datatype == "BYTES":
            if len(lengths) != 1:
                raise ValueError(f"input '{name}' is text: expected one LENGTH, in words")
            continue
        shape = row_shape(tensor, batched)
        dynamic = sum(dimension < 0 for dimension in shape)
        if len(lengths) != dynamic:
            raise ValueError(
                f"input '{name}' has the shape {list(shape)}: expected {dynamic} lengths, "
                f"got {len(lengths)}"
            )


def row_shape(tensor: TensorMetadata, batched: bool) -> tuple[int, ...]:
    """The shape of one row; -1 where a dimension is dynamic."""
    return tensor.shape[1:] if batched else tensor.shape


def synthetic(
    metadata: ModelMetadata, *, batched: bool, rows: int, shapes: Shapes, seed: int
) -> list[Sample]:
    """Samples out of thin air, `rows` of equal shape for each of up to `SYNTHETIC_REQUESTS`.

    Floating-point numbers lie in [0, 1), whole numbers and booleans are 0 or 1: valid as token,
    mask, flag and category alike. Texts consist of words. Inputs that are given the same lengths
    have the same length in each request, as tokens and their mask must.
    """
    random = np.random.default_rng(seed)
    samples: list[Sample] = []
    nbytes = 0
    while len(samples) < rows * SYNTHETIC_REQUESTS and nbytes <= SYNTHETIC_BYTES:
        quantiles = random.random(max(len(tensor.shape) for tensor in metadata.inputs) + 1)
        for _ in range(rows):
            sample = {
                tensor.name: _synthetic_row(
                    tensor, row_shape(tensor, batched), shapes.get(tensor.name), quantiles, random
                )
                for tensor in metadata.inputs
            }
            samples.append(sample)
            nbytes += sum(array.nbytes for array in sample.values())
    return samples


def _synthetic_row(
    tensor: TensorMetadata,
    shape: tuple[int, ...],
    lengths: Sequence[Lengths] | None,
    quantiles: npt.NDArray[np.float64],
    random: np.random.Generator,
) -> Array:
    default = Lengths(DEFAULT_LENGTH, DEFAULT_LENGTH)
    if tensor.datatype == "BYTES":
        words = (lengths or [default])[0].at(quantiles[0])
        texts = np.empty(tuple(max(1, dimension) for dimension in shape), dtype=object)
        texts.ravel()[:] = [
            " ".join(random.choice(WORDS, words)).encode() for _ in range(texts.size)
        ]
        return texts
    dynamic = iter(lengths or [default] * len(shape))
    drawn = iter(quantiles)
    concrete = [d if d >= 0 else next(dynamic).at(next(drawn)) for d in shape]
    dtype = DATATYPES[tensor.datatype].numpy or np.dtype(np.float32)  # numpy has no BF16
    if dtype.kind == "f":
        return random.random(concrete, dtype=np.float32).astype(dtype)
    return random.integers(0, 2, concrete).astype(dtype)


def serialised(
    metadata: ModelMetadata, samples: Sequence[Sample], *, batched: bool, rows: int, version: str
) -> list[bytes]:
    """Each request as a serialised `ModelInferRequest` of `rows` samples that follow each other;
    the last ones begin again at the first, so that every sample is sent.

    Raises:
        ValueError: samples that would ride in one request differ in shape or inputs.
        InvalidInput: a sample has elements that cannot be sent.
    """
    datatypes = {tensor.name: tensor.datatype for tensor in metadata.inputs}
    endless = cycle(samples)
    requests = []
    for _ in range(math.ceil(len(samples) / rows)):
        group = list(islice(endless, rows))
        given = dict.fromkeys(f"[{', '.join(sorted(sample))}]" for sample in group)
        if len(given) > 1:
            raise ValueError(
                f"expected {rows} rows with the same inputs in one request, "
                f"got {', '.join(given)}: order the samples by inputs, or send --rows 1"
            )
        arrays = {}
        for name, first in group[0].items():
            if not batched:
                arrays[name] = (first, datatypes[name])
                continue
            shapes = dict.fromkeys(str(list(sample[name].shape)) for sample in group)
            if len(shapes) > 1:
                raise ValueError(
                    f"expected {rows} rows of equal shapes for input '{name}' in one request, "
                    f"got {', '.join(shapes)}: order the samples by shape, or send --rows 1"
                )
            arrays[name] = (np.stack([sample[name] for sample in group]), datatypes[name])
        request = infer_request(metadata.name, arrays, version=version)
        requests.append(request.SerializeToString())
    return requests
