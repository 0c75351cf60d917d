"""Requests of different lengths ride together, and nobody's answer shows it."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from itertools import pairwise, starmap
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pytest
import torch
from examples.sentences import build as sentences
from hypothesis import given, settings
from hypothesis import strategies as st

from asking import submit
from engine_stage import serve
from headrace_server.engine.riding import RidingRules
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.repository import ModelKind, ModelSource
from headrace_server.models.spec import ModelSpec, TensorSpec
from headrace_server.workers.executor import BatchOutput, RequestTensors
from ragged_networks import LONGEST, MAX_BATCH_SIZE, VOCABULARY, export_attention, load
from riding_together import Arrays, call_of, ride_together

SIZES = st.lists(
    st.tuples(st.integers(1, 3), st.integers(1, LONGEST)), min_size=1, max_size=MAX_BATCH_SIZE // 3
)
"""Rows and length of each request of a batch, in any order."""

SEEDS = st.integers(0, 2**32 - 1)


def texts(
    sizes: Sequence[tuple[int, int]], seed: int, vocabulary: int, names: tuple[str, str]
) -> list[dict[str, np.ndarray]]:
    """Random ids under a mask that hides some of them, as clients pad their own rows."""
    draw = np.random.default_rng(seed)
    requests = []
    for rows, length in sizes:
        ids = draw.integers(0, vocabulary, (rows, length))
        own = draw.integers(1, length + 1, (rows, 1))
        requests.append({names[0]: ids, names[1]: np.arange(length) < own})
    return requests


def padded_by_hand(requests: Sequence[Arrays]) -> dict[str, torch.Tensor]:
    """The batch that the requests should have made, put together another way."""
    longest = max(array.shape[1] for request in requests for array in request.values())
    return {
        name: torch.cat(
            [
                torch.nn.functional.pad(
                    torch.from_numpy(request[name]), (0, longest - request[name].shape[1])
                )
                for request in requests
            ]
        )
        for name in requests[0]
    }


def assert_padding_shows_nowhere(model: LoadedModel, requests: Sequence[Arrays]) -> None:
    answers = asyncio.run(ride_together(model, requests))
    together = model.run(padded_by_hand(requests))
    row = 0
    for request, answer in zip(requests, answers, strict=True):
        alone = model.run({name: torch.from_numpy(array) for name, array in request.items()})
        rows, length = next(iter(request.values())).shape
        for name, got in answer.items():
            same = together[name][row : row + rows]
            same = same[:, :length] if same.dim() == 3 else same
            assert got.shape == alone[name].shape
            np.testing.assert_array_equal(got, same, "not that of the same padded batch")
            np.testing.assert_allclose(got, alone[name], rtol=1e-5, atol=1e-5)
        row += rows


@pytest.fixture(scope="module")
def attention(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    directory = tmp_path_factory.mktemp("attention") / "m"
    export_attention(directory, mask_type=torch.bool)
    model = load(directory)
    assert [tensor.pad for tensor in model.spec.inputs] == [0, 0], "not derived"
    return model


@settings(max_examples=30)
@given(sizes=SIZES, seed=SEEDS)
def test_padding_never_changes_an_answer(
    attention: LoadedModel, sizes: list[tuple[int, int]], seed: int
) -> None:
    requests = texts(sizes, seed, VOCABULARY, ("ids", "attention_mask"))
    assert_padding_shows_nowhere(attention, requests)


@settings(max_examples=15)
@given(sizes=SIZES, seed=SEEDS, chosen=st.integers(0, 100))
def test_what_others_send_never_changes_an_answer(
    attention: LoadedModel, sizes: list[tuple[int, int]], seed: int, chosen: int
) -> None:
    """Not one bit, as long as the batch has the same shape."""
    mine = chosen % len(sizes)
    first, second = (
        texts(sizes, other, VOCABULARY, ("ids", "attention_mask")) for other in (seed, seed + 1)
    )
    second[mine] = first[mine]
    answers = [asyncio.run(ride_together(attention, batch))[mine] for batch in (first, second)]
    for name, value in answers[0].items():
        np.testing.assert_array_equal(value, answers[1][name])


@pytest.fixture(scope="module")
def sentence_encoder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    directory = tmp_path_factory.mktemp("sentences") / "sentences" / "1"
    sentences.build(directory)
    source = ModelSource("sentences", 1, directory / "model.py", ModelKind.PYTHON)
    model = load_model(source, None, "cpu")
    yield model
    model.close()


@settings(max_examples=4)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 2), st.integers(1, 40)), min_size=2, max_size=6),
    seed=SEEDS,
)
def test_padding_never_changes_a_real_sentences_embedding(
    sentence_encoder: LoadedModel, sizes: list[tuple[int, int]], seed: int
) -> None:
    requests = texts(sizes, seed, 30_000, ("ids", "mask"))
    assert_padding_shows_nowhere(sentence_encoder, requests)


@pytest.fixture(scope="module")
def picture_mirror(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """Gives every request its own pictures back, out of one flat tensor of all of them."""
    directory: Path = tmp_path_factory.mktemp("pictures") / "m"
    (directory / "1").mkdir(parents=True)
    (directory / "1" / "model.py").write_text(
        """
from headrace_server import Model, TensorSpec

class Mirror(Model):
    inputs = [TensorSpec("picture", "FP32", [-1, -1])]
    outputs = [TensorSpec("again", "FP32", [-1, -1]), TensorSpec("shape", "INT32", [2])]

    def forward(self, picture, shape):
        assert picture.dim() == 1
        return picture, shape
"""
    )
    (directory / "config.pbtxt").write_text(
        """
max_batch_size: 32
input { name: "picture" data_type: TYPE_FP32 dims: [ -1, -1 ] allow_ragged_batch: true }
batch_input { kind: BATCH_ITEM_SHAPE target_name: "shape" data_type: TYPE_INT32
              source_input: "picture" }
output { name: "again" data_type: TYPE_FP32 dims: [ -1, -1 ] }
output { name: "shape" data_type: TYPE_INT32 dims: [ 2 ] }
batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "again"
               source_input: "picture" }
"""
    )
    return load(directory)


@given(
    shapes=st.lists(
        st.tuples(st.integers(1, 3), st.integers(1, 6), st.integers(1, 6)), min_size=1, max_size=8
    ),
    seed=SEEDS,
)
def test_concatenated_requests_get_their_own_elements_back(
    picture_mirror: LoadedModel, shapes: list[tuple[int, int, int]], seed: int
) -> None:
    draw = np.random.default_rng(seed)
    pictures = [draw.random(shape, dtype=np.float32) for shape in shapes]
    answers = asyncio.run(ride_together(picture_mirror, [{"picture": p} for p in pictures]))
    for picture, answer in zip(pictures, answers, strict=True):
        np.testing.assert_array_equal(answer["again"], picture)
        np.testing.assert_array_equal(answer["shape"], [picture.shape[1:]] * len(picture))


# -- who rides with whom ----------------------------------------------------------------------

MIXED = ModelSpec(
    "mixed",
    1,
    "test",
    8,
    (
        TensorSpec("ragged", "UINT8", [-1], pad=0),
        TensorSpec("free", "UINT8", [-1]),
        TensorSpec("extra", "UINT8", [2], optional=True),
        TensorSpec("spare", "UINT8", [2], default=7),
        TensorSpec("flat", "UINT8", [-1], flat=True),
    ),
    (TensorSpec("y", "UINT8", [-1]),),
)


def mixed_request(chance: Random) -> dict[str, np.ndarray]:
    rows = chance.randint(1, 3)
    shapes = {
        "ragged": (rows, chance.randint(1, 4)),
        "free": (rows, chance.choice([1, 2])),
        "flat": (rows, chance.randint(0, 3)),
    }
    shapes |= {name: (rows, 2) for name in ("extra", "spare") if chance.random() < 0.5}
    return {name: np.ones(shape, np.uint8) for name, shape in shapes.items()}


def incompatible(left: RequestTensors, right: RequestTensors) -> bool:
    """Whether one tensor could not hold both, said in other words than the batch key's."""
    (_, left_free, left_extra, *_), (_, right_free, right_extra, *_) = left.shapes, right.shapes
    assert left_free is not None
    assert right_free is not None
    return left_free[1:] != right_free[1:] or (left_extra is None) != (right_extra is None)


def blank_answer(batch: Sequence[RequestTensors]) -> BatchOutput:
    """What a worker answers that knows nothing but the shape of its batch."""
    shape = (sum(r.rows for r in batch), max((r.shapes[0] or ())[1] for r in batch))
    return BatchOutput(shape, memoryview(bytearray(math.prod(shape))))


@given(SEEDS.map(Random), st.booleans())
def test_only_the_incompatible_ride_apart_and_they_block_nobody(
    chance: Random, static: bool
) -> None:
    async def story() -> None:
        stage = await serve(spec=MIXED, workers=2, static=static)
        held, batches = stage.workers.held, stage.workers.batches
        submitted = []
        for step in range(90):
            running = [waiting[0] for waiting in held.values() if waiting]
            if step < 60 and chance.random() < 0.7:
                call = call_of(MIXED, mixed_request(chance))
                submitted.append((call, submit(stage.deployment, call)[1]))
            elif running:
                first = chance.choice(running)
                stage.workers.complete(first, blank_answer(batches[first]))
            stage.clock.advance(0.0 if static else 0.01)
            if static and stage.deployment.queued_requests:
                assert all(held.values()), "an odd request keeps a worker from the others"
        while running := [waiting[0] for waiting in held.values() if waiting]:
            stage.workers.complete(running[0], blank_answer(batches[running[0]]))
            stage.clock.advance(1.0)
        for call, future in submitted:
            (answer,) = (await future).outputs
            assert answer.shape == call.tensors.shapes[0]
        for batch in batches.values():
            assert not any(starmap(incompatible, pairwise(batch)))

    asyncio.run(story())


@given(SEEDS.map(Random))
def test_equal_keys_and_compatible_requests_are_the_same_thing(chance: Random) -> None:
    rules = RidingRules(MIXED)
    left, right = (call_of(MIXED, mixed_request(chance)).tensors for _ in range(2))
    assert (rules.of(left)[0] == rules.of(right)[0]) == (not incompatible(left, right))
