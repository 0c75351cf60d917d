"""The engine as a front knows it: the same look-up and the same calls, answered from afar."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass

from headrace_server.core.errors import Reason
from headrace_server.engine.calls import Answer, AnswerTensor, Call, Waiter
from headrace_server.engine.catalogue import Catalogue
from headrace_server.engine.deployment import DeploymentState
from headrace_server.engine.observer import Observer
from headrace_server.fronts import frames
from headrace_server.fronts.link import Link
from headrace_server.fronts.segment import Segment, look_at
from headrace_server.models.spec import ModelSpec
from headrace_server.workers.executor import BatchTiming
from headrace_server.workers.regions import Span


class RemoteDeployment:
    """One version of a model, as the engine last described it. Satisfies `serving.Served`."""

    def __init__(self, number: int, engine: RemoteEngine) -> None:
        self.number = number
        self.state = DeploymentState.LOADING
        self._spec: ModelSpec | None = None
        self._engine = engine

    @property
    def spec(self) -> ModelSpec:
        """The model's signature. Only once loaded."""
        assert self._spec is not None, "the model is not loaded"
        return self._spec

    def update(self, row: frames.Row) -> None:
        """What the engine says of it now."""
        self.state = DeploymentState(row.state)
        self._spec = row.spec

    def submit(self, call: Call, waiter: Waiter) -> int:
        """See `Served.submit`. What the engine refuses, the waiter is told."""
        return self._engine.submit(self.number, call, waiter)

    def cancel(self, ticket: int) -> None:
        """See `Served.cancel`."""
        self._engine.cancel(ticket)


@dataclass(slots=True, eq=False)
class _Pending:
    """A call that the engine has; nobody waits for it once it is cancelled. `places`: what of it
    lies in shared memory."""

    waiter: Waiter | None
    places: list[int]


class RemoteEngine(Catalogue[RemoteDeployment]):
    """Sends calls over a link and takes what comes back. Satisfies `serving.Serving`.

    Args:
        requests: where the inputs of calls are placed.
        answers: the memory that answers lie in.
    """

    def __init__(self, requests: Segment, answers: memoryview) -> None:
        super().__init__()
        self.observer: Observer = _Reporting(self)
        self._requests = requests
        self._answers = answers
        self._link: Link | None = None
        self._loop = asyncio.get_running_loop()
        self._deployments: dict[int, RemoteDeployment] = {}
        self._loading_models: tuple[str, ...] = ()
        self._tried: tuple[tuple[str, str], ...] = ()
        self._pending: dict[int, _Pending] = {}
        self._next_id = 0

    def attach(self, link: Link) -> None:
        """Talk over this link."""
        self._link = link

    @property
    def link(self) -> Link:
        """The way to the engine."""
        assert self._link is not None, "not attached"
        return self._link

    @property
    def pending(self) -> int:
        """Calls that the engine has not ended yet."""
        return len(self._pending)

    # -- what there is ----------------------------------------------------------------------

    def update(self, table: frames.Table) -> None:
        """From now on calls find what the engine's own would."""
        before, self._deployments, self._models = self._deployments, {}, {}
        for row in table.rows:
            deployment = before.get(row.number) or RemoteDeployment(row.number, self)
            deployment.update(row)
            self._deployments[row.number] = deployment
            self._models.setdefault(row.model, {})[row.version] = deployment
        self._loading_models, self._tried = table.loading, table.absent
        self.stopping = table.stopping
        # The engine may wait for this: nobody finds what it has taken away any more.
        self.link.acknowledge()

    def _loading(self) -> Collection[str]:
        return self._loading_models

    def _absent(self) -> Collection[tuple[str, str]]:
        return self._tried

    # -- calls ------------------------------------------------------------------------------

    def submit(self, deployment: int, call: Call, waiter: Waiter) -> int:
        """Send a call to the deployment of this number."""
        request, self._next_id = self._next_id, self._next_id + 1
        places: list[int] = []
        data: list[frames.Contents] = []
        sent = 0
        for contents in call.tensors.data:
            assert not isinstance(contents, Span), "fronts share no memory with clients"
            placed = None if contents is None else self._requests.put(contents)
            if isinstance(placed, tuple):
                places.append(placed[0])
            elif placed is not None:
                sent += len(placed)
            data.append(placed)
        self._pending[request] = _Pending(waiter, places)
        message = frames.Submit(
            request,
            deployment,
            call.tensors.rows,
            tuple(data),
            tuple(call.tensors.shapes),
            dict(call.tensors.parameters),
            call.nbytes,
            self._loop.time() if call.arrived_s is None else call.arrived_s,
            call.priority,
            call.timeout_s,
            call.remaining_s,
            call.wanted,
            call.tenant,
            call.weight,
        )
        self.link.send(message, sent)
        return request

    def cancel(self, request: int) -> None:
        """Take a call back. Its memory is free once the engine says so."""
        pending = self._pending.get(request)
        if pending is not None and pending.waiter is not None:
            pending.waiter = None
            self.link.send(frames.Cancel(request))

    def answered(self, message: frames.Answered) -> None:
        """The engine answered a call."""
        waiter = self._ended(message.id)
        if waiter is None:
            return
        outputs = [
            AnswerTensor(output.shape, bytes(look_at(self._answers, output.data) or b""))
            for output in message.outputs
        ]
        timing = BatchTiming(message.input_ns, message.infer_ns, message.output_ns)
        waiter.answered(Answer(outputs, message.batch_rows, message.queue_s, timing))

    def refused(self, message: frames.Refused) -> None:
        """The engine ended a call without an answer."""
        waiter = self._ended(message.id)
        if waiter is not None:
            waiter.refused(frames.error_of(message))

    def _ended(self, request: int) -> Waiter | None:
        pending = self._pending.pop(request)
        for offset in pending.places:
            self._requests.free(offset)
        return pending.waiter


class _Reporting(Observer):
    """Lets the engine's process count what never became a request."""

    def __init__(self, engine: RemoteEngine) -> None:
        self._engine = engine

    def call_invalid(self, model: str, reason: Reason) -> None:
        """See `Observer`."""
        self._engine.link.send(frames.Invalid(model, reason.value))
