"""Sentence embeddings with all-MiniLM-L6-v2: text in, unit vectors of 384 numbers out.

The dot product of two embeddings says how close in meaning two sentences are. In the version
directory, ``encoder.py``, ``model.safetensors`` and ``tokenizer.json`` lie beside this file.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# The version directory is on the import path of a model that is served from it.
from encoder import Embedder  # type: ignore[import-not-found]
from torch import Tensor

from headrace_server import Model, ModelContext, TensorSpec


class SentenceEncoder(Model):
    """``text``: UTF-8, one sentence or paragraph per row; ``embedding``: its unit vector."""

    inputs = (TensorSpec("text", "BYTES", [1]),)
    outputs = (TensorSpec("embedding", "FP32", [384]),)
    max_batch_size = 32

    def load(self, context: ModelContext) -> None:
        self.embed = Embedder(context.directory, context.device)

    def forward(self, text: npt.NDArray[np.object_]) -> Tensor:
        # A stray byte in one request must not fail the others in its batch, hence "replace".
        embeddings: Tensor = self.embed([row.decode(errors="replace") for row in text[:, 0]])
        return embeddings
