"""The base class of models written in Python: what a user's ``model.py`` subclasses.

Does not import torch, so that the name can be had without its cost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from headrace_server.models.spec import TensorSpec


@dataclass(frozen=True, slots=True)
class ModelContext:
    """What a model is told when it is loaded.

    ``device`` is a torch device string (``cpu``, ``cuda:0``): weights go there, and input tensors
    arrive there. ``directory`` is the version directory, where ``model.py`` lies. ``parameters``
    are those of config.pbtxt.
    """

    name: str
    version: int
    device: str
    directory: Path
    parameters: Mapping[str, str]


class Model:
    """A model in Python. Subclass it once in ``model.py``, declare its tensors, write ``forward``.

    ``inputs`` and ``outputs`` leave out the batch dimension. ``max_batch_size`` is the most rows
    that one call of ``forward`` takes; 0 means that there is no batch dimension, shapes are full
    and each request runs alone.

    One instance lives in each worker process and is called from one thread, with gradients off.
    Tensors that ``forward`` is given are valid during the call only.

    A model whose inputs show their true size only after some work on them (tokenise, decode,
    resize) declares ``prepared`` and writes `prepare`: that runs per request, on workers of its
    own, before the request queues, and ``forward`` then takes the prepared tensors. Those with a
    ``pad`` value may differ in length from request to request. One with ``mask_of`` is made by the
    server: neither clients nor `prepare` give it.
    """

    inputs: ClassVar[Sequence[TensorSpec]]
    outputs: ClassVar[Sequence[TensorSpec]]
    prepared: ClassVar[Sequence[TensorSpec]] = ()
    max_batch_size: ClassVar[int] = 32

    def load(self, context: ModelContext) -> None:
        """Get ready: read weights, move them to ``context.device``. Runs once, before any call.

        ``torch.load(path, weights_only=True)`` or safetensors keep a weights file from running
        code of its own.
        """

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Answer one batch. Each input comes as a keyword, named as declared.

        With a batch dimension all inputs have the same leading length, the rows of the batch.
        Tensors are torch tensors on the model's device; a BYTES input is a numpy object array of
        ``bytes``. A parameter named ``parameters`` receives the custom parameters of the requests:
        one dict per row. An optional input that no request of the batch gave is left out, so its
        parameter needs a default.

        Return a mapping from output name to value, a tuple or list in the order of ``outputs``,
        or the value itself where there is only one output. A value is a torch tensor or a numpy
        array of the declared datatype; for BYTES an array or (nested) list of ``str`` or
        ``bytes``. Every output has as many rows as the inputs, in the same order.
        """
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def load_prepare(self, context: ModelContext) -> None:
        """Get ready to `prepare`. Runs in the workers of that stage, in the place of `load`."""

    def prepare(self, *args: Any, **kwargs: Any) -> Any:
        """Turn the inputs of one request into the tensors that ``prepared`` declares.

        Each input comes as a keyword, all rows of the request. Return what `forward` may return,
        for ``prepared`` instead of ``outputs``; every tensor has the rows of the request.
        """
        raise NotImplementedError(f"{type(self).__name__} declares prepared, but no prepare()")

    def unload(self) -> None:
        """Release what ``load`` acquired. Runs once, when the model is no longer served."""
