"""Small real networks that take inputs of different lengths, and what saves them as models."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.repository import read_model

VOCABULARY = 50
WIDTH = 8
LONGEST = 64
MAX_BATCH_SIZE = 16


class Attention(torch.nn.Module):
    """ids, mask [rows, length] -> tokens [rows, length, 8] and their masked mean [rows, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = torch.nn.Embedding(VOCABULARY, WIDTH)
        self.positions = torch.nn.Embedding(LONGEST, WIDTH)
        self.query = torch.nn.Linear(WIDTH, WIDTH)
        self.key = torch.nn.Linear(WIDTH, WIDTH)
        self.value = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.words(ids) + self.positions.weight[: ids.shape[1]]
        x = x + functional.scaled_dot_product_attention(
            self.query(x), self.key(x), self.value(x), (attention_mask != 0)[:, None, :]
        )
        weights = attention_mask[:, :, None].to(x.dtype)
        return {"tokens": x, "pooled": (x * weights).sum(1) / weights.sum(1)}


class Inverted(Attention):
    """The same with a mask that is 1 where there is nothing to attend to."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        return super().forward(ids, 1 - attention_mask)


class Leaking(Attention):
    """Forgets the mask where it takes the mean."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        tokens = super().forward(ids, attention_mask)["tokens"]
        return {"tokens": tokens, "pooled": tokens.mean(1)}


class Segments(torch.nn.Module):
    """values [elements of all requests], ends [requests] -> their sums, and the values doubled."""

    def forward(self, values: torch.Tensor, ends: torch.Tensor) -> dict[str, torch.Tensor]:
        places = torch.arange(values.shape[0], dtype=torch.int32, device=values.device)
        request = torch.bucketize(places, ends, right=True)
        sums = torch.zeros(ends.shape[0], device=values.device).index_add(0, request, values)
        return {"sums": sums[:, None], "doubled": values * 2}


class Repeated(torch.nn.Module):
    """Answers every request with the whole of what was made for the batch."""

    def forward(
        self, values: torch.Tensor, counts: torch.Tensor, made: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        requests = torch.ones_like(counts)[:, None]
        return {"seen": requests * made.reshape(1, -1), "rank": requests * made.dim()}


def write_script(directory: Path, module: torch.nn.Module, config: str) -> None:
    """Write `directory/1/model.pt` and its configuration."""
    (directory / "1").mkdir(parents=True, exist_ok=True)
    (directory / "config.pbtxt").write_text(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), str(directory / "1" / "model.pt"))


def write_exported(
    directory: Path,
    module: torch.nn.Module,
    inputs: dict[str, torch.Tensor],
    dynamic: dict[str, Any],
    config: str = "",
) -> None:
    """Write `directory/1/model.pt2`, and a configuration if there is one."""
    (directory / "1").mkdir(parents=True, exist_ok=True)
    if config:
        (directory / "config.pbtxt").write_text(config)
    program = torch.export.export(
        module.eval(), tuple(inputs.values()), dynamic_shapes=dynamic, strict=False
    )
    torch.export.save(program, directory / "1" / "model.pt2")


def export_attention(
    directory: Path,
    module: torch.nn.Module | None = None,
    config: str = "",
    *,
    mask_type: torch.dtype = torch.int64,
    longest: int = LONGEST,
) -> None:
    """Write `Attention`, or one of its kind, with a dynamic length of 1 to ``longest``."""
    batch = torch.export.Dim("batch", max=MAX_BATCH_SIZE)
    length = torch.export.Dim("length", max=longest)
    inputs = {
        "ids": torch.zeros(2, 5, dtype=torch.int64),
        "attention_mask": torch.ones(2, 5).to(mask_type),
    }
    dynamic = {name: {0: batch, 1: length} for name in inputs}
    write_exported(directory, module or Attention(), inputs, dynamic, config)


def export_segments(directory: Path, config: str) -> None:
    """Write `Segments`, whose two inputs have nothing in common."""
    inputs = {"values": torch.zeros(6), "ends": torch.tensor([2, 6], dtype=torch.int32)}
    dynamic = {"values": {0: torch.export.Dim("n")}, "ends": {0: torch.export.Dim("requests")}}
    write_exported(directory, Segments(), inputs, dynamic, config)


def load(directory: Path) -> LoadedModel:
    """Load the one version that lies in a model's directory, as the server does."""
    entry = read_model(directory)
    assert entry.error is None, entry.error
    return load_model(entry.versions[0], entry.config, "cpu")
