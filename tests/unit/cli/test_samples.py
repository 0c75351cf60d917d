"""Files of real inputs become samples, each one row, or one clear line."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from headrace.answers import ModelMetadata, TensorMetadata
from headrace_server.bench.inputs import Sample
from headrace_server.cli.errors import CommandError
from headrace_server.cli.samples import read_samples

IDS = TensorMetadata("ids", "INT64", (-1, -1))
SCORE = TensorMetadata("score", "FP32", (-1, 1))
TEXT = TensorMetadata("text", "BYTES", (-1, 1))


def read(file: Path, *inputs: TensorMetadata, batched: bool = True) -> list[Sample]:
    return read_samples(file, ModelMetadata("m", ("1",), "python", inputs, ()), batched=batched)


def refusal(file: Path, *inputs: TensorMetadata) -> str:
    with pytest.raises(CommandError) as refused:
        read(file, *inputs)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_an_archive_holds_an_array_for_each_input(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez(file, ids=np.array([[1, 2], [3, 4]], np.int32), score=np.array([0.5, 0.25]))
    samples = read(file, IDS, SCORE)
    assert [sample["ids"].tolist() for sample in samples] == [[1, 2], [3, 4]]
    assert [sample["score"].tolist() for sample in samples] == [[0.5], [0.25]]
    assert samples[0]["ids"].dtype == np.int64
    assert samples[0]["score"].dtype == np.float32


def test_text_in_an_archive_is_sent_as_it_is(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", text=np.array([["one"], ["größer"]]))
    samples = read(tmp_path / "a.npz", TEXT)
    assert [sample["text"].tolist() for sample in samples] == [["one"], ["größer"]]


def test_json_lists_the_samples_of_each_input(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text(json.dumps({"ids": [[1], [2, 3]], "text": ["a", ["b"]]}))
    samples = read(file, IDS, TEXT)
    assert [sample["ids"].tolist() for sample in samples] == [[1], [2, 3]]
    assert [sample["text"].tolist() for sample in samples] == [["a"], ["b"]]


def test_json_lines_hold_one_sample_each(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"ids": [1, 2], "score": 1}\n\n{"ids": [3], "score": [2]}\n')
    samples = read(file, IDS, SCORE)
    assert [sample["ids"].tolist() for sample in samples] == [[1, 2], [3]]
    assert [sample["score"].tolist() for sample in samples] == [[1], [2]]


def test_lines_of_text_are_the_only_input(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"first line\n\nsecond \xff\n")
    samples = read(file, TEXT)
    assert [sample["text"].tolist() for sample in samples] == [[b"first line"], [b"second \xff"]]


def test_without_batch_dimension_a_sample_is_the_whole_input(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", fixed=np.ones((5, 3)))
    samples = read(tmp_path / "a.npz", TensorMetadata("fixed", "FP32", (3,)), batched=False)
    assert [sample["fixed"].shape for sample in samples] == [(3,)] * 5


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "1", "ends in .npz, .json, .jsonl, .txt, got"),
        ("a.npz", "no archive", "cannot read"),
        ("a.npz", "PK\x03\x04", "cannot read"),
        ("a.json", "[" * 100_000, "expected JSON, got '[[["),
        ("a.json", "[1]", "expected a JSON object with the model's inputs, got '[1]'"),
        ("a.json", '{"id": [1]}', "no input 'id'; it takes ids, score"),
        ("a.json", '{"ids": 1}', "expected a list of samples of input 'ids'"),
        ("a.json", '{"ids": [["x"]]}', "input 'ids': expected INT64"),
        ("a.json", '{"ids": [[1]], "score": [1, 2]}', "got ids 1, score 2"),
        ("a.jsonl", '{"ids": [1]}\n{"ids": [1', "line 2: expected JSON"),
        ("a.jsonl", "\n", "expected samples in"),
        ("a.txt", "text", "'m' takes ids INT64, score FP32"),
    ],
)
def test_a_file_of_anything_else_is_refused(
    tmp_path: Path, name: str, content: str, expected: str
) -> None:
    (tmp_path / name).write_text(content)
    assert expected in refusal(tmp_path / name, IDS, SCORE)


def test_numbers_of_another_kind_are_not_rounded(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", ids=np.array([[1.5]]))
    assert "input 'ids' is INT64, got float64" in refusal(tmp_path / "a.npz", IDS)


def test_a_damaged_archive_is_read_or_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    np.savez_compressed(file, ids=np.arange(1_000).reshape(10, 100))
    whole = file.read_bytes()
    for at in range(30, len(whole), 7):
        file.write_bytes(whole[:at] + b"\x00\xff\x07\x63" + whole[at + 4 :])
        with suppress(CommandError):
            read(file, IDS)


def test_a_single_array_is_no_archive(tmp_path: Path) -> None:
    with (tmp_path / "a.npz").open("wb") as file:
        np.save(file, np.ones((2, 2)))
    assert "expected an archive of arrays" in refusal(tmp_path / "a.npz", IDS)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    assert "missing.npz" in refusal(tmp_path / "missing.npz", IDS)
