"""Sentence embeddings with all-MiniLM-L6-v2: text in, unit vectors of 384 numbers out.

The dot product of two embeddings says how close in meaning two sentences are. In the version
directory, `encoder.py`, `model.safetensors` and `tokenizer.json` lie beside this file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# The version directory is on the import path of a model that is served from it.
from encoder import Tokens, load_encoder  # type: ignore[import-not-found]
from torch import Tensor

from headrace_server import Model, ModelContext, TensorSpec


class SentenceEncoder(Model):
    """`text`: UTF-8, one sentence or paragraph per row; `embedding`: its unit vector."""

    inputs = (TensorSpec("text", "BYTES", [1]),)
    outputs = (TensorSpec("embedding", "FP32", [384]),)
    # Tokens show the true size of a request, so that texts of similar length ride together.
    prepared = (
        TensorSpec("ids", "INT64", [-1], pad=0),
        TensorSpec("mask", "BOOL", [-1], pad=0),
    )
    max_batch_size = 32

    def load_prepare(self, context: ModelContext) -> None:
        self.tokenize = Tokens(context.directory)

    def prepare(self, text: npt.NDArray[np.object_]) -> tuple[Tensor, Tensor]:
        tokens: tuple[Tensor, Tensor] = self.tokenize(
            [row.decode(errors="replace") for row in text[:, 0]]
        )
        return tokens

    def load(self, context: ModelContext) -> None:
        self.encode = load_encoder(context.directory, context.device)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        embeddings: Tensor = self.encode(ids, mask)
        return embeddings
