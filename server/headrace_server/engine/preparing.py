"""One call of a model that has a `prepare` of its own: there first, then in the model's queue."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Answer, Call, Waiter
from headrace_server.engine.clock import Clock
from headrace_server.workers.executor import RequestTensors
from headrace_server.workers.regions import RequestSpans

if TYPE_CHECKING:
    from headrace_server.core.request import Request
    from headrace_server.engine.deployment import Deployment
    from headrace_server.engine.dispatcher import Dispatcher

log = logging.getLogger("headrace.engine")


class Preparing:
    """Waits for the stage that prepares, queues what comes out of it, and is cancelled in either.

    Submits the call to that stage at once. Raises `ServingError` where that refuses it.

    Args:
        deployment: whose call it is.
        stage: runs `prepare`, in batches and with workers of its own.
        requests: where the prepared call queues.
        waiter: of the whole call.
    """

    __slots__ = (
        "_arrived_s",
        "_call",
        "_clock",
        "_deployment",
        "_request",
        "_requests",
        "_stage",
        "_ticket",
        "_waiter",
    )

    def __init__(
        self,
        deployment: Deployment,
        stage: Deployment,
        requests: Dispatcher,
        call: Call,
        waiter: Waiter,
        clock: Clock,
    ) -> None:
        self._deployment = deployment
        self._stage = stage
        self._requests = requests
        self._call = call
        self._waiter: Waiter | None = waiter
        self._clock = clock
        self._arrived_s = clock.now()
        self._request: Request | None = None
        # That stage has no queue policies of its own to judge the timeout by.
        timeout_s = call.timeout_s if deployment.rules.refuses_late(call) else None
        tensors, spans = call.tensors, call.tensors.spans
        if spans is not None:
            tensors = replace(tensors, spans=RequestSpans(spans.inputs))
        self._ticket = stage.submit(
            replace(call, tensors=tensors, timeout_s=timeout_s, wanted=None), self
        )

    def answered(self, answer: Answer) -> None:
        """It is prepared. See `Waiter`."""
        waiter = self._leave()
        try:
            self._request = self._requests.submit(self._prepared(answer), waiter)
        except ServingError as error:
            waiter.refused(error)
        except Exception:
            name = self._deployment.name
            log.exception("model '%s': what prepare returned cannot be queued", name)
            waiter.refused(ServingError(Reason.MODEL_FAILED, model=name))

    def refused(self, error: ServingError) -> None:
        """It cannot be prepared. See `Waiter`."""
        self._leave().refused(error)

    def cancel(self) -> None:
        """Nobody waits any more."""
        if self._request is None:
            self._stage.cancel(self._ticket)
        else:
            self._requests.cancel(self._request)

    def _leave(self) -> Waiter:
        """The stage is done with it. Who waits has this for a ticket, so this lets go of him."""
        waiter, self._waiter = self._waiter, None
        assert waiter is not None
        return waiter

    def _prepared(self, answer: Answer) -> Call:
        """What queues in the place of the call. Raises `ServingError`."""
        call, name = self._call, self._deployment.name
        rows, spans = call.tensors.rows, call.tensors.spans
        if any(output.shape[0] != rows for output in answer.outputs):
            log.warning("model '%s': prepare changed the number of rows", name)
            raise ServingError(Reason.MODEL_FAILED, model=name)
        for tensor, output in zip(self._deployment.spec.prepared, answer.outputs, strict=True):
            # The worker of that stage has checked everything but the length: it is the request's.
            if not tensor.admits(output.shape[1:]):
                raise ServingError(
                    Reason.WRONG_SHAPE,
                    model=name,
                    input=tensor.name,
                    expected=tensor.described(batched=True),
                    got=list(output.shape),
                )
        spent_s = self._clock.now() - self._arrived_s
        return Call(
            RequestTensors(
                rows,
                [output.data for output in answer.outputs],
                [output.shape for output in answer.outputs],
                call.tensors.parameters,
                None if spans is None else RequestSpans(outputs=spans.outputs),
            ),
            sum(len(output.data) for output in answer.outputs),
            call.priority,
            None if call.timeout_s is None else max(0.0, call.timeout_s - spent_s),
            None if call.remaining_s is None else max(0.0, call.remaining_s - spent_s),
            self._arrived_s,
            call.wanted,
            call.tenant,
            call.weight,
        )
