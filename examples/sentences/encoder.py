"""all-MiniLM-L6-v2 in plain torch: text to tokens, a six-layer BERT encoder, unit vectors.

Architecture: Devlin et al., "BERT" (2018), distilled as in Wang et al., "MiniLM" (2020). Knows
nothing of serving; `model.py`, which lies beside it in the version directory, does that part.

Checked against sentence-transformers 6.2.0 with the same weights on CPU: over 603 texts, from
one word to 2,000, no number differs by more than 1.8e-7.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional

VOCABULARY = 30_522
MAX_POSITIONS = 512
MAX_TOKENS = 256  # the checkpoint's max_seq_length; what follows is cut off
LAYERS = 6
HEADS = 12
WIDTH = 384
INNER_WIDTH = 1_536
NORM_EPSILON = 1e-12


class Layer(nn.Module):
    """Self-attention, then a two-layer perceptron; each added to its input and normalised."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(WIDTH, WIDTH)
        self.key = nn.Linear(WIDTH, WIDTH)
        self.value = nn.Linear(WIDTH, WIDTH)
        self.mix = nn.Linear(WIDTH, WIDTH)
        self.mix_norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.widen = nn.Linear(WIDTH, INNER_WIDTH)
        self.narrow = nn.Linear(INNER_WIDTH, WIDTH)
        self.narrow_norm = nn.LayerNorm(WIDTH, NORM_EPSILON)

    def forward(self, x: Tensor, may_attend: Tensor) -> Tensor:
        """`x` [batch, length, 384]; `may_attend` bool [batch, 1, 1, length]."""

        def heads(projected: Tensor) -> Tensor:
            return projected.view(*projected.shape[:2], HEADS, -1).transpose(1, 2)

        attended = functional.scaled_dot_product_attention(
            heads(self.query(x)), heads(self.key(x)), heads(self.value(x)), may_attend
        )
        x = self.mix_norm(x + self.mix(attended.transpose(1, 2).flatten(-2)))
        x = self.narrow_norm(x + self.narrow(functional.gelu(self.widen(x))))
        return x  # noqa: RET504 - the two steps are alike, and so they stay


class Encoder(nn.Module):
    """Token ids to unit vectors: embed, six layers, mean over the real tokens, L2 norm 1."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(VOCABULARY, WIDTH)
        self.positions = nn.Embedding(MAX_POSITIONS, WIDTH)
        self.segments = nn.Embedding(2, WIDTH)
        self.norm = nn.LayerNorm(WIDTH, NORM_EPSILON)
        self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Encode `ids` int64 [batch, length] where `mask` bool [batch, length] is true.

        Returns FP32 [batch, 384]. Every row needs one real token at least, which the tokenizer's
        [CLS] guarantees. Ids under the padding change nothing but the last bits of the answer.
        """
        # One sentence per row, so every token belongs to segment 0.
        x = self.norm(
            self.words(ids) + self.positions.weight[: ids.shape[1]] + self.segments.weight[0]
        )
        for layer in self.layers:
            x = layer(x, mask[:, None, None, :])
        weights = mask.unsqueeze(-1).to(x.dtype)
        return functional.normalize((x * weights).sum(dim=1) / weights.sum(dim=1), dim=-1)


class Embedder:
    """The encoder with its tokenizer, read from a directory with the checkpoint's files.

    `directory` holds `model.safetensors` and `tokenizer.json`. Raises RuntimeError naming
    the tensors if any is missing, left over or of another shape.
    """

    def __init__(self, directory: Path, device: str) -> None:
        self._device = device
        self._encoder = load_encoder(directory, device)
        self._tokenize = Tokens(directory)

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Return the embeddings of one batch: FP32 [texts, 384], each of length 1."""
        ids, mask = self._tokenize(texts)
        embeddings: Tensor = self._encoder(ids.to(self._device), mask.to(self._device))
        return embeddings


class Tokens:
    """The tokenizer, read from `tokenizer.json` in a directory."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.enable_truncation(MAX_TOKENS)
        # The file asks for 128 tokens in every row; padding to the longest of a batch is enough.
        self._tokenizer.no_padding()

    def __call__(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids, int64 [texts, length], and the mask of the real ones, bool of that shape."""
        rows = [torch.tensor(row.ids) for row in self._tokenizer.encode_batch(texts)]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(ids.shape[1]) < lengths[:, None]


# The checkpoint's names on the left, the names above on the right.
_NAMES = (
    (r"^embeddings\.word_embeddings\.", "words."),
    (r"^embeddings\.position_embeddings\.", "positions."),
    (r"^embeddings\.token_type_embeddings\.", "segments."),
    (r"^embeddings\.LayerNorm\.", "norm."),
    (r"^encoder\.layer\.", "layers."),
    (r"\.attention\.self\.", "."),
    (r"\.attention\.output\.dense\.", ".mix."),
    (r"\.attention\.output\.LayerNorm\.", ".mix_norm."),
    (r"\.intermediate\.dense\.", ".widen."),
    (r"\.output\.dense\.", ".narrow."),
    (r"\.output\.LayerNorm\.", ".narrow_norm."),
)
# A head for BERT's next-sentence task, and a table that counts from 0 to 511.
_UNUSED = ("pooler.", "embeddings.position_ids")


def load_encoder(directory: Path, device: str) -> Encoder:
    """Return the encoder with the weights of `model.safetensors` in a directory."""
    checkpoint = load_file(directory / "model.safetensors", device=device)
    with torch.device("meta"):  # allocate nothing: the checkpoint's tensors become the weights
        encoder = Encoder()
    encoder.load_state_dict(
        {
            _rename(name): tensor
            for name, tensor in checkpoint.items()
            if not name.startswith(_UNUSED)
        },
        assign=True,
    )
    return encoder.eval()


def _rename(name: str) -> str:
    for theirs, ours in _NAMES:
        name = re.sub(theirs, ours, name)
    return name
