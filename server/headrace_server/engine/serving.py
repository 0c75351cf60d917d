"""What a transport needs of an engine to run inference, whether or not it is in this process."""

from __future__ import annotations

import asyncio
from typing import Any, Protocol

from headrace_server.core.errors import Reason
from headrace_server.engine.calls import Answer, Call
from headrace_server.engine.observer import Observer
from headrace_server.models.spec import ModelSpec


class Served(Protocol):
    """One version of a model that answers calls."""

    @property
    def spec(self) -> ModelSpec:
        """The model's signature."""
        ...

    @property
    def prepares(self) -> bool:
        """Whether calls must go to `infer`, as `submit` does not do all of it."""
        ...

    async def infer(self, call: Call) -> Answer:
        """Answer one call. Cancelling the awaiting task takes the request back. Raises
        `ServingError`."""
        ...

    def submit(self, call: Call) -> tuple[Any, asyncio.Future[Answer]]:
        """Hand over one call; what comes back is its request, for `cancel`, and the future that
        brings the answer or a `ServingError`. Raises `ServingError`."""
        ...

    def cancel(self, request: Any) -> None:
        """The caller went away. Nothing happens to requests that ended already."""
        ...


class Serving(Protocol):
    """Finds who answers."""

    @property
    def observer(self) -> Observer:
        """Told of calls that never became requests."""
        ...

    def find(self, model: str, version: str = "") -> Served:
        """The one that answers for this model. Raises `ServingError`."""
        ...

    def knows(self, model: str) -> bool:
        """Whether there is such a model."""
        ...


def count_invalid(serving: Serving, model: str, reason: Reason) -> None:
    """Count a call that never became a request. A name that no model has is not worth a label:
    callers could make up any number of them."""
    serving.observer.call_invalid(model if serving.knows(model) else "", "", reason)
