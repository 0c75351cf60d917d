"""Whether what the server said to a case is allowed: its code, its reason, its contents. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import grpc
from google.protobuf.message import DecodeError

from bench.checked_models import FUZZED, differences
from bench.fuzz.cases import Metadata, Stream
from headrace.errors import InvalidResponse, ServerError
from headrace.messages import infer_result
from headrace.multiplexing import (
    BUNDLES_METADATA,
    CANCEL_PARAMETER,
    CODE_PARAMETER,
    MAX_BUNDLE,
    REASON_PARAMETER,
    UNORDERED_METADATA,
    unbundle,
)
from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import TensorError, contents_to_raw, decode_tensor
from headrace_server.core.errors import Reason
from headrace_server.transport.status import STATUS

CODES = frozenset(status.code for status in STATUS.values())
"""What any call may end with, besides OK."""

BLAMELESS = frozenset({Reason.INTERNAL, Reason.MODEL_FAILED, Reason.WORKER_LOST})
"""Reasons that no request is to blame for: the models of the fuzz answer whatever is valid."""

_MODELS = {model.name: model for model in FUZZED}
_CODE_OF_REASON = {reason.value: status.code for reason, status in STATUS.items()}
_DEFECTS = {reason.value for reason in BLAMELESS}


def judge_code(error: ServerError) -> str:
    """What is wrong with the end of a call that failed; empty if nothing is."""
    if error.code not in CODES:
        return f"the code {error.code.name} is not in the table: {error.message}"
    if error.reason is None:
        return ""
    if error.reason in _DEFECTS:
        return f"no request is to blame for {error.reason}: {error.message}"
    if _CODE_OF_REASON.get(error.reason) is not error.code:
        return f"the reason {error.reason} does not belong to {error.code.name}"
    return ""


def parsed(body: bytes) -> pb.ModelInferRequest | None:
    """The request, if it is one."""
    try:
        return pb.ModelInferRequest.FromString(body)
    except DecodeError:
        return None


def judge_answer(request: pb.ModelInferRequest | None, response: pb.ModelInferResponse) -> str:
    """What is wrong with an answer to this request; empty if nothing is."""
    if request is None:
        return "expected an error for what is no message, got an answer"
    if (response.model_name, response.id) != (request.model_name, request.id):
        return f"the answer is for {response.id[:99]!r} of '{response.model_name[:99]}'"
    model = _MODELS.get(request.model_name)
    if model is None:
        return "an answer of a model that there is not"
    try:
        inputs = {
            tensor.name: decode_tensor(
                tensor.datatype,
                [*tensor.shape],
                request.raw_input_contents[index]
                if request.raw_input_contents
                else contents_to_raw(tensor.datatype, tensor.contents)[0],
            )
            for index, tensor in enumerate(request.inputs)
        }
        got = infer_result(response).outputs
    except (TensorError, IndexError, InvalidResponse) as error:
        return f"expected an error, got an answer: {error}"
    expected = model.answer(inputs)
    if request.outputs:
        wanted = [output.name for output in request.outputs]
        if [*got] != wanted:
            return f"expected the outputs {wanted}, got {[*got]}"
        expected = {name: expected[name] for name in wanted}
    return differences(got, expected)


class StreamJudge:
    """Judges the answers of one stream as they come, and their number in the end."""

    def __init__(self, stream: Stream) -> None:
        self._bundled = _says(stream.metadata, BUNDLES_METADATA)
        self._ordered = not _says(stream.metadata, UNORDERED_METADATA)
        self._readable = True
        self._sent: list[pb.ModelInferRequest | None] = []
        for body in stream.bodies:
            request = parsed(body)
            if request is None:
                self._readable = False  # ends the stream: what follows is never read
                break
            self._sent += self._requests_in(request)
        self._open = Counter(request.id if request else "" for request in self._sent)
        self.answers = 0

    def message(self, message: pb.ModelStreamInferResponse) -> list[str]:
        """What is wrong with a message of the server, which may be a bundle."""
        try:
            return [p for answer in unbundle(message) if (p := self._answer(answer))]
        except InvalidResponse as error:
            return [str(error)]

    def complete(self) -> list[str]:
        """What is missing, once a stream ended well."""
        problems = []
        if not self._readable:
            problems.append("expected an error for what is no message, got a proper end")
        if self.answers != len(self._sent):
            problems.append(f"expected {len(self._sent)} answers, got {self.answers}")
        return problems

    def _answer(self, answer: pb.ModelStreamInferResponse) -> str:
        response = answer.infer_response
        position, self.answers = self.answers, self.answers + 1
        if not self._open[response.id]:
            return f"an answer for {response.id[:99]!r}, which nobody asked or all got theirs"
        self._open[response.id] -= 1
        request = self._sent[position] if self._ordered else None
        if request is not None and request.id != response.id:
            return f"expected the answer for {request.id[:99]!r}, got {response.id[:99]!r}"
        if answer.error_message:
            return judge_code(_error_of(answer))
        del response.parameters["triton_final_response"]
        # Ids may repeat: then any of those requests may be the one.
        asked = [r for r in self._sent if r is not None and r.id == response.id]
        problems = [judge_answer(request, response) for request in asked]
        return "" if "" in problems or not problems else problems[0]

    def _requests_in(self, request: pb.ModelInferRequest) -> Iterable[pb.ModelInferRequest | None]:
        """Those that are due an answer; None stands for what is no message."""
        bundle: Sequence[bytes] = request.raw_input_contents
        if request.model_name or not (self._bundled and bundle):
            yield from _unless_cancellation(request)
        elif len(bundle) > MAX_BUNDLE:
            yield None
        else:
            for data in bundle:
                inner = parsed(data)
                yield from (None,) if inner is None else _unless_cancellation(inner)


def _unless_cancellation(request: pb.ModelInferRequest) -> Iterable[pb.ModelInferRequest]:
    if request.model_name or CANCEL_PARAMETER not in request.parameters:
        yield request


def _error_of(answer: pb.ModelStreamInferResponse) -> ServerError:
    given = answer.infer_response.parameters
    number = given[CODE_PARAMETER].int64_param
    code = next(c for c in grpc.StatusCode if c.value[0] == number)
    return ServerError(code, answer.error_message, given[REASON_PARAMETER].string_param)


def _says(metadata: Metadata, name: str) -> bool:
    return dict(metadata).get(name) == "true"
