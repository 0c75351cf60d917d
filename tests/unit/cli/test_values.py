"""What is typed on a command line becomes the arrays that a model takes, or one clear line."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.answers import ModelMetadata, TensorMetadata
from headrace_server.cli.errors import CommandError
from headrace_server.cli.values import Inputs, read_inputs

IMAGE = TensorMetadata("image", "FP32", (-1, 2, 2))
TEXT = TensorMetadata("text", "BYTES", (-1, 1))
COUNT = TensorMetadata("count", "INT8", (-1, 1))
TOKENS = TensorMetadata("tokens", "INT64", (-1, -1))
FIXED = TensorMetadata("fixed", "FP64", (3,))
HALF = TensorMetadata("half", "BF16", (-1, 2))


def read(
    *tensors: TensorMetadata,
    rows: tuple[str, ...] = (),
    named: tuple[str, ...] = (),
    json_input: str | None = None,
    zeros: bool = False,
) -> Inputs:
    metadata = ModelMetadata("m", ("1",), "python", tensors, ())
    return read_inputs(metadata, rows, named, json_input, zeros=zeros)


def refusal(*tensors: TensorMetadata, **given: Any) -> str:
    with pytest.raises(CommandError) as refused:
        read(*tensors, **given)
    text = str(refused.value)
    assert "\n" not in text
    return text


def array(inputs: Inputs, name: str) -> np.ndarray[Any, Any]:
    found = inputs[name]
    assert isinstance(found, np.ndarray)
    return found


def test_each_positional_value_is_a_row_of_the_only_input() -> None:
    found = array(read(IMAGE, rows=("[[1, 2], [3, 4]]", "[[5, 6], [7, 8.5]]")), "image")
    assert found.dtype == np.float32
    assert found.tolist() == [[[1, 2], [3, 4]], [[5, 6], [7, 8.5]]]


def test_a_positional_value_with_a_batch_dimension_is_as_many_rows_as_it_has() -> None:
    rows = ("[[[1, 2], [3, 4]], [[1, 2], [3, 4]]]", "[[5, 6], [7, 8]]")
    found = array(read(IMAGE, rows=rows), "image")
    assert found.shape == (3, 2, 2)


def test_text_is_taken_as_it_stands() -> None:
    found = array(read(TEXT, rows=('["no", "JSON"]', "größer = 3")), "text")
    assert found.tolist() == [[b'["no", "JSON"]'], ["größer = 3".encode()]]


def test_leading_dimensions_of_one_may_be_left_out() -> None:
    inputs = read(IMAGE, COUNT, named=("image=[[1, 2], [3, 4]]", "count=5"))
    assert array(inputs, "image").shape == (1, 2, 2)
    assert array(inputs, "count").shape == (1, 1)
    assert array(inputs, "count").dtype == np.int8


def test_only_the_first_equals_sign_ends_the_name() -> None:
    assert array(read(TEXT, COUNT, named=("text=a=b",)), "text").tolist() == [[b"a=b"]]


def test_a_model_without_batch_dimension_takes_one_value() -> None:
    assert array(read(FIXED, rows=("[1, 2, 3]",)), "fixed").tolist() == [1, 2, 3]
    assert "no batch dimension" in refusal(FIXED, rows=("[1, 2, 3]", "[1, 2, 3]"))


def test_rows_of_different_lengths_are_refused_with_their_shapes() -> None:
    assert "[2], [3]" in refusal(TOKENS, rows=("[1, 2]", "[1, 2, 3]"))


def test_bf16_goes_out_as_plain_numbers_for_the_sdk_to_round() -> None:
    assert read(HALF, rows=("[1, 2.5]",)) == {"half": [[1.0, 2.5]]}


def test_files_are_read_by_their_suffix(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.ones((2, 2), np.float32))
    (tmp_path / "a.json").write_text("[[1, 1], [1, 1]]")
    (tmp_path / "a.txt").write_text("two\nlines\n")
    for name in ("a.npy", "a.json"):
        found = array(read(IMAGE, rows=(f"@{tmp_path / name}",)), "image")
        assert found.tolist() == [[[1, 1], [1, 1]]]
    assert array(read(TEXT, rows=(f"@{tmp_path / 'a.txt'}",)), "text").tolist() == [[b"two\nlines"]]


def test_a_pickle_in_a_npy_file_is_not_run(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object), allow_pickle=True)
    assert "a.npy" in refusal(IMAGE, rows=(f"@{tmp_path / 'a.npy'}",))


def of_shape(shape: str) -> bytes:
    """The beginning of a .npy file that says so."""
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}}}\n".encode()
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header


def archive() -> bytes:
    file = io.BytesIO()
    np.savez(file, image=np.ones((2, 2), np.float32))
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.npy", None),
        ("missing.json", None),
        ("a.csv", b"1,2"),
        ("broken.npy", b"\x93NUMPY"),
        ("archive.npy", archive()),
        ("zip.npy", b"PK\x03\x04"),
        ("endless.npy", of_shape("(1099511627776,)")),
        ("odd.npy", of_shape(f"({2**70},)")),
        ("open.npy", of_shape("(")),
        ("deep.json", b"[" * 100_000),
        ("latin.json", b'["\xff"]'),
    ],
)
def test_a_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    assert name in refusal(IMAGE, rows=(f"@{tmp_path / name}",))


def test_json_input_gives_several_inputs_at_once(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(json.dumps({"text": [["a"], ["b"]], "count": [[1], [2]]}))
    inputs = read(TEXT, COUNT, json_input=str(file))
    assert array(inputs, "text").tolist() == [["a"], ["b"]]
    assert array(inputs, "count").tolist() == [[1], [2]]


def test_json_input_can_come_from_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO('{"count": 3}'))
    assert array(read(COUNT, json_input="-"), "count").tolist() == [[3]]


def test_a_named_input_goes_before_the_same_one_in_json_input(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"count": 1}')
    inputs = read(COUNT, named=("count=2",), json_input=str(file))
    assert array(inputs, "count").tolist() == [[2]]


def test_an_input_that_is_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text('{"count": 1}')
    with pytest.raises(CommandError, match="expected one --input count=VALUE, got several"):
        read(COUNT, named=("count=2", "count=3"))
    with pytest.raises(CommandError, match="'count' once, got it as VALUE and by --input"):
        read(COUNT, rows=("1",), named=("count=2",))
    with pytest.raises(CommandError, match="'count' once, got it as VALUE and by --json-input"):
        read(COUNT, rows=("1",), json_input=str(file))


def test_zeros_fill_only_what_is_not_given() -> None:
    inputs = read(TEXT, TOKENS, HALF, named=("tokens=[[7, 8]]",), zeros=True)
    assert array(inputs, "tokens").tolist() == [[7, 8]]
    assert array(inputs, "text").tolist() == [[b""]]
    assert inputs["half"] == [[0.0, 0.0]]


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        (("image=[1, 2",), "input 'image' (FP32): expected JSON"),
        (("image=[[1, 2], [3]]",), "input 'image'"),
        (("image=" + "[" * 100_000,), "input 'image' (FP32): expected JSON"),
        (("image=" + "[" * 100 + "]" * 100,), "input 'image': expected FP32"),
        (('image=["a"]',), "input 'image': expected FP32"),
        (("count=300",), "input 'count': expected INT8"),
        (("count=1.5",), "input 'count': expected INT8"),
        (("imag=1",), "no input 'imag'; it takes image, count, text"),
        (("image",), "expected --input NAME=VALUE, got 'image'"),
    ],
)
def test_a_value_that_does_not_fit_is_refused_with_its_input(
    named: tuple[str, ...], expected: str
) -> None:
    assert expected in refusal(IMAGE, COUNT, TEXT, named=named)


@pytest.mark.parametrize("text", ['{"text": [["a"], []]}', '{"text": [1]}', '{"text": null}'])
def test_json_that_is_no_text_is_refused_for_a_text_input(tmp_path: Path, text: str) -> None:
    file = tmp_path / "inputs.json"
    file.write_text(text)
    assert "input 'text'" in refusal(TEXT, json_input=str(file))


def test_json_input_that_is_no_object_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "inputs.json"
    file.write_text("[1]")
    assert "expected a JSON object" in refusal(COUNT, json_input=str(file))


def test_positional_values_need_a_model_with_one_input() -> None:
    assert "(image, count)" in refusal(IMAGE, COUNT, rows=("1",))
