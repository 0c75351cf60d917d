"""Requests made before a run: valid for the model, as long as asked for, the same every time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from headrace.answers import ModelMetadata, TensorMetadata
from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import decode_tensor
from headrace_server.bench.inputs import (
    SYNTHETIC_BYTES,
    SYNTHETIC_REQUESTS,
    Lengths,
    Sample,
    Shapes,
    check_shapes,
    parse_shape,
    serialised,
    synthetic,
)

IMAGE = TensorMetadata("image", "FP32", (-1, 2, 2))
IDS = TensorMetadata("ids", "INT64", (-1, -1))
MASK = TensorMetadata("mask", "BOOL", (-1, -1))
TEXT = TensorMetadata("text", "BYTES", (-1, 1))
HALF = TensorMetadata("half", "BF16", (-1, 3))


def model(*inputs: TensorMetadata) -> ModelMetadata:
    return ModelMetadata("m", ("1",), "python", inputs, ())


def make(
    *inputs: TensorMetadata, batched: bool = True, rows: int = 1, **shapes: Sequence[Lengths]
) -> list[Sample]:
    return synthetic(model(*inputs), batched=batched, rows=rows, shapes=shapes, seed=0)


def sent(metadata: ModelMetadata, samples: Sequence[Sample], rows: int) -> list[np.ndarray]:
    """The first input of each request, as the server reads it."""
    requests = serialised(metadata, samples, batched=True, rows=rows, version="3")
    arrays = []
    for request in map(pb.ModelInferRequest.FromString, requests):
        assert (request.model_name, request.model_version) == ("m", "3")
        given = request.inputs[0]
        arrays.append(decode_tensor(given.datatype, given.shape, request.raw_input_contents[0]))
    return arrays


def test_lengths_spread_over_their_range_evenly_and_equal_ranges_go_together() -> None:
    spread = (Lengths(3, 6),)
    samples = make(IDS, MASK, ids=spread, mask=spread)
    lengths = [len(sample["ids"]) for sample in samples]
    assert len(samples) == SYNTHETIC_REQUESTS
    assert all(30 < lengths.count(length) < 100 for length in (3, 4, 5, 6))
    assert lengths == [len(sample["mask"]) for sample in samples]


def test_whole_numbers_are_0_or_1_and_floats_below_1() -> None:
    sample = make(IDS, IMAGE, HALF, ids=[Lengths(100, 100)])[0]
    assert set(sample["ids"].tolist()) == {0, 1}
    assert sample["image"].dtype == np.float32
    assert sample["image"].shape == (2, 2)
    assert 0 <= sample["image"].min() <= sample["image"].max() < 1
    assert sample["half"].dtype == np.float32  # rounded when it is sent


def test_text_has_as_many_words_as_asked_for() -> None:
    sample = make(TEXT, text=[Lengths(5, 5)])[0]
    assert sample["text"].shape == (1,)
    assert len(sample["text"][0].split()) == 5


def test_rows_of_one_request_have_equal_lengths_and_requests_differ() -> None:
    metadata = model(IDS)
    arrays = sent(metadata, make(IDS, rows=4, ids=[Lengths(1, 50)]), rows=4)
    assert {array.shape[0] for array in arrays} == {4}
    assert len({array.shape[1] for array in arrays}) > 20


def test_a_model_without_batch_dimension_gets_its_whole_shape() -> None:
    fixed = TensorMetadata("fixed", "FP64", (3, -1))
    assert make(fixed, batched=False, fixed=[Lengths(7, 7)])[0]["fixed"].shape == (3, 7)


def test_large_inputs_are_fewer() -> None:
    large = TensorMetadata("large", "FP32", (-1, SYNTHETIC_BYTES // 16))
    assert len(make(large)) == 5


def test_equal_seeds_make_equal_requests() -> None:
    first, second = (sent(model(IMAGE), make(IMAGE), rows=1) for _ in range(2))
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


def test_samples_ride_in_turn_and_begin_again_to_fill_the_last_request() -> None:
    samples = [{"text": np.array([str(i).encode()], dtype=object)} for i in range(3)]
    arrays = sent(model(TEXT), samples, rows=2)
    assert [array.ravel().tolist() for array in arrays] == [[b"0", b"1"], [b"2", b"0"]]


def test_rows_of_different_shapes_cannot_ride_in_one_request() -> None:
    samples = [{"ids": np.zeros(length, np.int64)} for length in (2, 3)]
    with pytest.raises(ValueError, match=r"2 rows of equal shapes .* got \[2\], \[3\]"):
        serialised(model(IDS), samples, batched=True, rows=2, version="")


@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
def test_rows_with_different_inputs_cannot_ride_in_one_request(order: tuple[int, int]) -> None:
    ids = np.zeros(2, np.int64)
    samples: list[Sample] = [{"ids": ids}, {"ids": ids, "mask": ids > 0}]
    with pytest.raises(ValueError, match="2 rows with the same inputs") as refused:
        serialised(model(IDS, MASK), [samples[i] for i in order], batched=True, rows=2, version="")
    assert "[ids]" in str(refused.value)
    assert "[ids, mask]" in str(refused.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ids:128", ("ids", (Lengths(128, 128),))),
        ("ids:8..128", ("ids", (Lengths(8, 128),))),
        ("a:b:3,4..5", ("a:b", (Lengths(3, 3), Lengths(4, 5)))),
    ],
)
def test_a_shape_is_a_name_and_its_lengths(
    text: str, expected: tuple[str, tuple[Lengths, ...]]
) -> None:
    assert parse_shape(text) == expected


@pytest.mark.parametrize("text", ["ids", ":3", "ids:", "ids:x", "ids:8..", "ids:0", "ids:9..8"])
def test_a_shape_that_is_none_is_refused_as_typed(text: str) -> None:
    with pytest.raises(ValueError, match=f"expected INPUT:LENGTH .* got '{text}'"):
        parse_shape(text)


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        ({"idss": [Lengths(1, 1)]}, "no input 'idss'; it takes ids, image, text"),
        ({"ids": [Lengths(1, 1)] * 2}, "expected 1 lengths, got 2"),
        ({"image": [Lengths(1, 1)]}, "expected 0 lengths, got 1"),
        ({"text": [Lengths(1, 1)] * 2}, "input 'text' is text: expected one LENGTH"),
    ],
)
def test_a_shape_that_does_not_fit_the_model_is_refused(shapes: Shapes, expected: str) -> None:
    with pytest.raises(ValueError, match=expected):
        check_shapes(model(IDS, IMAGE, TEXT), batched=True, shapes=shapes)
