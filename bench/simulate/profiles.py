"""What a batch really takes in a simulated worker: durations by rows and length, with noise."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from headrace_server.core.cost import Sample

Duration = Callable[[int, int], float]
"""Seconds by rows and length."""

SWEPT_LENGTHS = (8, 32, 128)
"""Those that the server tries at load."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The true cost of batches on one worker.

    `duration_s(rows, length)` is exact; `noise` is the standard deviation of the logarithm of the
    factor by which single batches differ from it. `most_rows`: the largest batch. `hop_s`: from the
    decision for a batch to its first instruction in the worker; behind a running batch it passes
    meanwhile. `lengths`: of a sample of requests, ascending, where they differ.
    """

    name: str
    most_rows: int
    duration_s: Duration
    noise: float = 0.0
    hop_s: float = 0.0
    source: str = ""
    lengths: tuple[int, ...] = ()

    @property
    def typical(self) -> int:
        """The length of a request in the middle."""
        return self.lengths[len(self.lengths) // 2] if self.lengths else 0

    def draw_length(self, random: Random) -> int:
        """The length of one request."""
        return random.choice(self.lengths) if self.lengths else 0

    def sample(self, rows: int, length: int, random: Random) -> float:
        """How long one batch takes this time, in seconds."""
        exact_s = self.duration_s(rows, length)
        return exact_s * math.exp(random.gauss(0.0, self.noise)) if self.noise else exact_s

    def sweep(self) -> tuple[Sample, ...]:
        """What timing the model at load would have found: powers of two, and the largest."""
        lengths = SWEPT_LENGTHS if self.lengths else (0,)
        sizes = [1 << i for i in range(self.most_rows.bit_length()) if 1 << i < self.most_rows]
        return tuple(
            (rows, length, self.duration_s(rows, length))
            for length in lengths
            for rows in (*sizes, self.most_rows)
        )

    def noisy(self, noise: float) -> Profile:
        """The same with so much noise."""
        return replace(self, name=f"{self.name}, noise {noise:g}", noise=noise)


def _linear(base_s: float, row_s: float) -> Duration:
    return lambda rows, length: base_s + rows * row_s


def _tiles(base_s: float, tile_s: float, tile: int) -> Duration:
    return lambda rows, length: base_s + tile_s * math.ceil(rows / tile)


def _encoder(base_ms: float, row_ms: float, token_ms: float, pair_ms: float) -> Duration:
    return lambda rows, length: (
        1e-3 * (base_ms + rows * (row_ms + length * (token_ms + length * pair_ms)))
    )


def _sentences() -> tuple[int, ...]:
    """Tokens of the sentences that `make bench-text` sends with Python 3.11.7, whose docstrings
    they are, from a file of length:count of each."""
    text = (Path(__file__).parent / "lengths.txt").read_text()
    pairs = (map(int, pair.split(":")) for pair in text.split())
    return tuple(length for length, count in pairs for _ in range(count))


HOP_S = 0.5e-3
"""A little less than what `make bench-sim-validate` measures of the server. The profile `mlp` has
none: its batches take less than that, so such a model would not be fed from another process."""

GPU = Profile(
    "gpu",
    32,
    _linear(5.07e-3, 1.05e-3),
    hop_s=HOP_S,
    source="ResNet-50 on a GTX 1080 Ti, 1.05 b + 5.07 ms",
)
MLP = Profile(
    "mlp", 64, _linear(43.7e-6, 13.3e-6), source="784-512-512-10 on one core: 57 us, 14 us at 64"
)
ENCODER_16 = Profile(
    "minilm-16", 16, _linear(5.97e-3, 3.33e-3), hop_s=HOP_S, source="MiniLM, 16 tokens, one core"
)
RESNET_CPU = Profile(
    "resnet18-cpu",
    16,
    _linear(0.5e-3, 28.5e-3),
    hop_s=HOP_S,
    source="ResNet-18 at 224, one core: no gain",
)
STEPS = Profile(
    "gpu-steps",
    32,
    _tiles(4.0e-3, 2.4e-3, 8),
    hop_s=HOP_S,
    source="a device that computes rows by the tile of 8",
)
TEXT = Profile(
    "text",
    32,
    _encoder(4.9, 0.06, 0.23, 0.00027),
    hop_s=HOP_S,
    source="MiniLM on one core, where a batch costs as much as 21 tokens before its first row",
    lengths=_sentences(),
)
XEON_TEXT = replace(
    TEXT,
    name="text-xeon",
    duration_s=_encoder(8.0, 0.042, 0.192, 0.00018),
    source="MiniLM on another core (virtual, Intel Xeon, AVX-512), where it costs as much as 42; "
    "fitted to 192 shapes, medians of 7",
)

PROFILES = {
    p.name: p for p in (GPU, GPU.noisy(0.1), MLP, ENCODER_16, RESNET_CPU, STEPS, TEXT, XEON_TEXT)
}
