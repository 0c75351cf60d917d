"""The models that every server serves, and what a server is told. Needs numpy and torch alone."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FLOATS = 784


@dataclass(frozen=True)
class Order:
    """What to serve and how, from the environment.

    Attributes:
        workload: `mlp`, `images` or `sentences`.
        directory: holds `encoder.py` and the weights of the sentence encoder.
        rows: the most rows of a batch.
        delay_ms: how long the first request of a batch may wait for others.
        port: on the loopback interface.
    """

    workload: str
    directory: Path
    rows: int
    delay_ms: float
    port: int

    @classmethod
    def received(cls) -> Order:
        given = os.environ
        return cls(
            given["PEERS_WORKLOAD"],
            Path(given["PEERS_DIRECTORY"]),
            int(given["PEERS_ROWS"]),
            float(given["PEERS_DELAY_MS"]),
            int(given["PEERS_PORT"]),
        )


def mlp() -> nn.Module:
    """784-512-512-10, with the same random weights everywhere."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Linear(FLOATS, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 10))
    ).eval()


class ChannelMeans(nn.Module):
    """Three numbers of an image: next to no work, so that moving the image is what counts."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"mlp": mlp, "images": ChannelMeans}


def load(workload: str, directory: Path) -> Callable[[Any], np.ndarray]:
    """The model as a function of a batch: FP32 [rows, ...], or bytes [rows, 1] of `sentences`."""
    torch.set_num_threads(1)
    if workload == "sentences":
        from encoder import Embedder  # of `directory`, which is on the path

        embed = Embedder(directory, "cpu")

        def sentences(batch: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                return embed([text.decode() for text in batch[:, 0]]).numpy()

        return sentences
    network = NETWORKS[workload]()

    def numbers(batch: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return network(torch.from_numpy(batch)).numpy()

    return numbers
