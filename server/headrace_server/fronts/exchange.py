"""The engine's end of one front: submits its calls, sends their ends back, takes them back."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Answer, Call
from headrace_server.engine.catalogue import unavailable
from headrace_server.engine.clock import Clock
from headrace_server.engine.deployment import Deployment, DeploymentState
from headrace_server.engine.engine import Engine
from headrace_server.engine.serving import count_invalid
from headrace_server.fronts import frames
from headrace_server.fronts.link import Link
from headrace_server.fronts.segment import Segment, look_at
from headrace_server.transport.failing import unexpected
from headrace_server.workers.executor import RequestTensors


@dataclass(slots=True, eq=False)
class _Running:
    """A call that the engine has."""

    exchange: Exchange
    id: int
    deployment: Deployment
    ticket: Any = None

    def answered(self, answer: Answer) -> None:
        """See `Waiter`."""
        self.exchange.answered(self.id, answer)

    def refused(self, error: ServingError) -> None:
        """See `Waiter`."""
        self.exchange.refused(self.id, error)


class Exchange:
    """Serves one front for as long as that lives; `close` takes back what it still waits for.

    Args:
        deployment_of: finds a deployment by its `Row.number`; None if it has ended.
        requests: the memory that inputs of calls lie in.
        answers: where outputs are placed.
        clock: the one that requests are scheduled by.
    """

    def __init__(
        self,
        engine: Engine,
        deployment_of: Callable[[int], Deployment | None],
        requests: memoryview,
        answers: Segment,
        clock: Clock,
    ) -> None:
        self._engine = engine
        self._deployment_of = deployment_of
        self._requests = requests
        self._answers = answers
        self._clock = clock
        self._link: Link | None = None
        self._running: dict[int, _Running] = {}
        self._placed: deque[tuple[int, int]] = deque()

    def attach(self, link: Link) -> None:
        """Talk over this link."""
        self._link = link

    @property
    def link(self) -> Link:
        """The way to the front."""
        assert self._link is not None, "not attached"
        return self._link

    @property
    def running(self) -> int:
        """Calls that have not ended yet."""
        return len(self._running)

    def submit(self, message: frames.Submit) -> None:
        """A call of the front's."""
        deployment = self._deployment_of(message.deployment)
        try:
            if self._engine.stopping:
                raise ServingError(Reason.STOPPING)
            if deployment is None or deployment.state is not DeploymentState.READY:
                # The front has not heard of it yet: what it was told is a moment old.
                raise _gone(deployment)
            running = _Running(self, message.id, deployment)
            running.ticket = deployment.submit(self._call(message), running)
        except ServingError as error:
            self._refuse(message.id, error)
        except Exception as error:
            self._refuse(message.id, unexpected(error))
        else:
            self._running[message.id] = running

    def cancel(self, message: frames.Cancel) -> None:
        """The front's caller went away; unless the end is on its way already."""
        running = self._running.pop(message.id, None)
        if running is not None:
            running.deployment.cancel(running.ticket)
            self._refuse(message.id, ServingError(Reason.CANCELLED))

    def count(self, message: frames.Invalid) -> None:
        """A call of the front's that never became a request."""
        count_invalid(self._engine, message.model, Reason(message.reason))

    def seen(self, bundle: int) -> None:
        """The front has dealt with this bundle, and has copied the answers in it."""
        placed = self._placed
        while placed and placed[0][0] <= bundle:
            self._answers.free(placed.popleft()[1])

    def close(self) -> None:
        """The front is gone, and so is everybody who waited there."""
        running, self._running = self._running, {}
        # To take one back may end others, of whom nobody is told any more.
        for call in running.values():
            call.deployment.cancel(call.ticket)

    # -- told by the engine -----------------------------------------------------------------

    def answered(self, request_id: int, answer: Answer) -> None:
        """A call was answered."""
        del self._running[request_id]
        try:
            self._answer(request_id, answer)
        except Exception as error:
            self._refuse(request_id, unexpected(error))

    def refused(self, request_id: int, error: ServingError) -> None:
        """A call has ended without an answer."""
        if self._running.pop(request_id, None) is not None:
            self._refuse(request_id, error)

    # -- inside -----------------------------------------------------------------------------

    def _call(self, message: frames.Submit) -> Call:
        requests = self._requests
        late_s = max(0.0, self._clock.now() - message.arrived_s)
        return Call(
            RequestTensors(
                message.rows,
                [look_at(requests, contents) for contents in message.data],
                message.shapes,
                message.parameters,
            ),
            message.nbytes,
            message.priority,
            None if message.timeout_s is None else max(0.0, message.timeout_s - late_s),
            None if message.remaining_s is None else max(0.0, message.remaining_s - late_s),
            message.arrived_s,
            message.wanted,
            message.tenant,
            message.weight,
        )

    def _answer(self, request_id: int, answer: Answer) -> None:
        outputs = []
        sent = 0
        places: list[int] = []
        for tensor in answer.outputs:
            contents = self._answers.put(tensor.data)
            if isinstance(contents, tuple):
                places.append(contents[0])
            else:
                sent += len(tensor.data)
            outputs.append(frames.Output(tensor.shape, contents))
        if sent > frames.MAX_ANSWER_BYTES:
            for offset in places:
                self._answers.free(offset)
            problem = f"an answer has {sent} bytes, at most {frames.MAX_ANSWER_BYTES} can be sent"
            self._refuse(request_id, unexpected(ValueError(problem)))
            return
        timing = answer.timing
        message = frames.Answered(
            request_id,
            tuple(outputs),
            answer.batch_rows,
            answer.queue_s,
            timing.input_ns,
            timing.infer_ns,
            timing.output_ns,
        )
        bundle = self.link.next_bundle
        self._placed.extend((bundle, offset) for offset in places)
        self.link.send(message, sent)

    def _refuse(self, request_id: int, error: ServingError) -> None:
        self.link.send(frames.refusal(request_id, error))


def _gone(deployment: Deployment | None) -> ServingError:
    if deployment is None:  # it ended long ago
        return unavailable("?", DeploymentState.UNLOADING)
    return unavailable(deployment.name, deployment.state)
