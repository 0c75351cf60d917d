"""What a transport needs of an engine to run inference, whether or not it is in this process."""

from __future__ import annotations

from typing import Any, Protocol

from headrace_server.core.errors import Reason
from headrace_server.engine.calls import Call, Waiter
from headrace_server.engine.observer import Observer
from headrace_server.models.spec import ModelSpec


class Served(Protocol):
    """One version of a model that answers calls."""

    @property
    def spec(self) -> ModelSpec:
        """The model's signature."""
        ...

    def submit(self, call: Call, waiter: Waiter) -> Any:
        """Hand over one call; returns what `cancel` takes. Raises `ServingError` where it is
        refused at once; otherwise the waiter is told how it ends."""
        ...

    def cancel(self, ticket: Any) -> None:
        """Nobody waits any more. Nothing happens to calls that have ended."""
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
    serving.observer.call_invalid(model if serving.knows(model) else "", reason)
