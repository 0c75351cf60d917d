"""What the server may say to the cases of a fuzz."""

from __future__ import annotations

import grpc
import numpy as np
from bench.checked_models import SMALL
from bench.fuzz.cases import Stream
from bench.fuzz.judging import StreamJudge, judge_answer, judge_code

from headrace import ServerError
from headrace.messages import infer_request
from headrace.multiplexing import FINAL_PARAMETER, pack_error
from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import encode_tensor

INPUTS = SMALL.draw(np.random.default_rng(0))


def request(request_id: str = "a") -> pb.ModelInferRequest:
    return infer_request("small", {"x": (INPUTS["x"], "INT64")}, request_id=request_id)


def answer(request_id: str = "a", off_by: int = 0) -> pb.ModelInferResponse:
    y = SMALL.answer(INPUTS)["y"] + off_by
    response = pb.ModelInferResponse(model_name="small", id=request_id)
    response.outputs.add(name="y", datatype="INT64", shape=y.shape)
    response.raw_output_contents.append(encode_tensor(y))
    return response


def streamed(response: pb.ModelInferResponse) -> pb.ModelStreamInferResponse:
    message = pb.ModelStreamInferResponse(infer_response=response)
    message.infer_response.parameters[FINAL_PARAMETER].bool_param = True
    return message


def test_a_code_of_no_table_and_a_reason_that_nobody_is_to_blame_for_are_problems() -> None:
    code = grpc.StatusCode
    assert judge_code(ServerError(code.INVALID_ARGUMENT, "", "wrong_shape")) == ""
    assert judge_code(ServerError(code.UNKNOWN, "oops"))
    assert judge_code(ServerError(code.INTERNAL, "", "internal"))
    assert judge_code(ServerError(code.NOT_FOUND, "", "wrong_shape"))


def test_an_answer_must_be_the_requests_own() -> None:
    assert judge_answer(request(), answer()) == ""
    assert judge_answer(request(), answer("b"))
    assert judge_answer(request(), answer(off_by=1))
    assert judge_answer(None, answer())
    spoilt = request()
    spoilt.inputs[0].shape.append(9)
    assert judge_answer(spoilt, answer())


def test_a_stream_answers_each_request_once_and_in_order() -> None:
    bodies = tuple(request(i).SerializeToString() for i in ("a", "b"))
    judge = StreamJudge(Stream(bodies))
    assert judge.message(streamed(answer("a"))) == []
    assert judge.complete() == ["expected 2 answers, got 1"]
    assert judge.message(streamed(answer("a")))
    judge = StreamJudge(Stream(bodies))
    assert judge.message(streamed(answer("b")))
    judge = StreamJudge(Stream(bodies, (("headrace_unordered", "true"),)))
    assert judge.message(streamed(answer("b"))) == []
    assert judge.message(pack_error("a", 3, "too large", "wrong_shape", None)) == []
    assert judge.complete() == []


def test_what_follows_garbage_on_a_stream_is_not_waited_for() -> None:
    judge = StreamJudge(Stream((request().SerializeToString(), b"\xff", b"")))
    assert judge.message(streamed(answer())) == []
    assert judge.complete() == ["expected an error for what is no message, got a proper end"]
