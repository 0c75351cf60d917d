"""The batches that a model is warmed up with."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server import TensorSpec
from headrace_server.models.errors import ConfigError
from headrace_server.models.spec import ModelSpec
from headrace_server.models.warmup import warmup_inputs

SPEC = ModelSpec(
    *("m", 1, "python", 4),
    (TensorSpec("ids", "INT64", [-1, 2]), TensorSpec("text", "BYTES", [1])),
    (TensorSpec("y", "FP32", [1]),),
)
IDS = 'inputs { key: "ids" value { data_type: TYPE_INT64 dims: [ 3, 2 ] %s } }'
TEXT = 'inputs { key: "text" value { data_type: TYPE_STRING dims: 1 %s } }'


def samples(text: str, directory: Path = Path()) -> list[tuple[str, dict[str, Any]]]:
    return warmup_inputs(SPEC, text_format.Parse(text, ModelConfig()), directory)


def test_automatic_warm_up_runs_one_row_and_a_full_batch_of_zeros() -> None:
    one, full = warmup_inputs(SPEC, None, Path())
    assert one[0] == full[0] == "automatic"
    assert one[1]["ids"].tolist() == np.zeros((1, 16, 2), dtype=np.int64).tolist()
    assert full[1]["ids"].shape == (4, 16, 2)
    assert full[1]["text"].tolist() == [[b""]] * 4


def test_automatic_warm_up_takes_lengths_that_the_model_knows_to_be_good() -> None:
    one, _ = warmup_inputs(SPEC, None, Path(), {"ids": (5, 2)})
    assert one[1]["ids"].shape == (1, 5, 2)


def test_automatic_warm_up_keeps_to_declared_bounds() -> None:
    x = TensorSpec("x", "INT64", [-1], pad=0, bounds=[(1, 8)])
    one, _ = warmup_inputs(ModelSpec("m", 1, "python", 4, (x,), SPEC.outputs), None, Path())
    assert one[1]["x"].shape == (1, 8)


def test_model_without_batch_dimension_is_warmed_up_once() -> None:
    spec = ModelSpec("m", 1, "python", 0, (TensorSpec("x", "BF16", [3]),), SPEC.outputs)
    ((_, inputs),) = warmup_inputs(spec, None, Path())
    assert inputs["x"].shape == (3,)
    assert inputs["x"].dtype == torch.bfloat16


def test_configured_warm_up_is_repeated_as_often_as_it_says() -> None:
    ids, text = IDS % "random_data: true", TEXT % "zero_data: true"
    warmups = samples(f'model_warmup {{ name: "w" batch_size: 2 count: 3 {ids} {text} }}')
    assert [name for name, _ in warmups] == ["w"] * 3
    assert warmups[0][1]["ids"].shape == (2, 3, 2)
    assert set(warmups[0][1]["ids"].flatten().tolist()) <= {0, 1}
    assert warmups[0][1]["text"].tolist() == [[b""], [b""]]


def test_file_holds_one_row_for_the_whole_batch(tmp_path: Path) -> None:
    (tmp_path / "ids").write_bytes(np.arange(6, dtype="<i8").tobytes())
    (tmp_path / "text").write_bytes(b"\x02\0\0\0hi")
    ids, text = IDS % 'input_data_file: "ids"', TEXT % 'input_data_file: "text"'
    ((_, inputs),) = samples(f'model_warmup {{ name: "w" batch_size: 2 {ids} {text} }}', tmp_path)
    assert inputs["ids"].tolist() == [[[0, 1], [2, 3], [4, 5]]] * 2
    assert inputs["text"].tolist() == [[b"hi"], [b"hi"]]


@pytest.mark.parametrize(
    ("ids", "text", "message"),
    [
        ("", TEXT % "zero_data: true", r"has the inputs \['text'\], expected \['ids', 'text'\]"),
        (IDS.replace("INT64", "FP32") % "zero_data: true", None, "write data_type: TYPE_INT64"),
        (IDS.replace("2 ]", "3 ]") % "zero_data: true", None, r"dims are \[3, 3\], expected \[-1"),
        (IDS % 'input_data_file: "gone"', None, "gone cannot be read"),
        (IDS % 'input_data_file: "/etc/passwd"', None, "passwd leads out of the repository"),
        (IDS % f'input_data_file: "{"../" * 9}etc/passwd"', None, "leads out of the repository"),
        (IDS % 'input_data_file: "short"', None, "expected 48 bytes in .*short, got 1"),
        (IDS % "zero_data: true", TEXT % 'input_data_file: "short"', "input 'text': .*short: "),
    ],
)
def test_warm_up_that_does_not_fit_is_refused(
    tmp_path: Path, ids: str, text: str | None, message: str
) -> None:
    (tmp_path / "short").write_bytes(b"x")
    text = TEXT % "zero_data: true" if text is None else text
    with pytest.raises(ConfigError, match=message):
        samples(f'model_warmup {{ name: "w" {ids} {text} }}', tmp_path)


def test_warm_up_beyond_the_batch_size_is_refused() -> None:
    ids, text = IDS % "zero_data: true", TEXT % "zero_data: true"
    with pytest.raises(ConfigError, match="has batch_size 5, expected at most 4"):
        samples(f'model_warmup {{ name: "w" batch_size: 5 {ids} {text} }}')
