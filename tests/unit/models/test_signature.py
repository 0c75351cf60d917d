"""The model's word and the configuration's, brought together and completed."""

from pathlib import Path

import pytest
from google.protobuf import text_format

from headrace.protocol.model_config_pb2 import ModelConfig, ModelInstanceGroup
from headrace_server import TensorSpec
from headrace_server.models.completion import complete_config
from headrace_server.models.errors import ConfigError
from headrace_server.models.repository import ModelKind, ModelSource
from headrace_server.models.signature import Signature, positions, reconcile
from headrace_server.models.spec import ModelSpec

PROGRAM = Signature(
    origin="the program",
    platform="pytorch_pt2",
    inputs=(TensorSpec("x", "FP32", [-1, 4]), TensorSpec("mask", "BOOL", [-1])),
    outputs=(TensorSpec("OUTPUT__0", "FP32", [3]),),
    max_batch_size=64,
    batch_limit=64,
    can_drop_batch=True,
    positional_inputs=True,
    positional_outputs=True,
)
X = 'input { name: "x" data_type: TYPE_FP32 dims: [ 7, -1 ] }\n'
MASK = 'input { name: "mask" data_type: TYPE_BOOL dims: [ -1 ] }\n'


@pytest.fixture
def source(tmp_path: Path) -> ModelSource:
    return ModelSource("m", 3, tmp_path / "m" / "3" / "model.pt2", ModelKind.EXPORTED)


def spec(source: ModelSource, text: str, signature: Signature = PROGRAM) -> ModelSpec:
    source.config_file.parent.mkdir(parents=True, exist_ok=True)
    source.config_file.write_text(text)
    return reconcile(signature, source, text_format.Parse(text, ModelConfig()))


def test_without_configuration_the_model_has_its_own_word(source: ModelSource) -> None:
    assert reconcile(PROGRAM, source, None) == ModelSpec(
        "m", 3, "pytorch_pt2", 64, PROGRAM.inputs, PROGRAM.outputs
    )
    assert spec(source, "dynamic_batching { }") == reconcile(PROGRAM, source, None)


def test_configuration_restricts_dimensions_and_batch_size(source: ModelSource) -> None:
    result = spec(source, "max_batch_size: 8\n" + X + MASK)
    assert result.max_batch_size == 8
    assert [tensor.shape for tensor in result.inputs] == [(7, 4), (-1,)]


def test_configuration_without_batch_size_makes_the_batch_dimension_a_plain_one(
    source: ModelSource,
) -> None:
    output = 'output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ -1, 3 ] }'
    result = spec(source, output)
    assert result.max_batch_size == 0
    assert [tensor.shape for tensor in result.inputs] == [(-1, -1, 4), (-1, -1)]
    assert result.outputs[0].shape == (-1, 3)


def test_nameless_tensors_take_the_names_of_the_configuration(source: ModelSource) -> None:
    text = """max_batch_size: 8
    input { name: "INPUT__1" data_type: TYPE_BOOL dims: [ -1 ] }
    input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ -1, 4 ] }
    output { name: "scores" data_type: TYPE_FP32 dims: [ 3 ] }
    """
    result = spec(source, text)
    assert [str(tensor) for tensor in result.inputs] == [
        "INPUT__0 FP32 [-1, 4]",
        "INPUT__1 BOOL [-1]",
    ]
    assert result.outputs[0].name == "scores"


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("\nmax_batch_size: 65", ["line 2: max_batch_size is 65", "write max_batch_size: 64"]),
        (
            'max_batch_size: 8\n\ninput { name: "y" data_type: TYPE_FP32 dims: 1 }',
            ["line 3: input[0].name 'y' is unknown", "'x FP32 [-1, 4]', 'mask BOOL [-1]'"],
        ),
        (
            "max_batch_size: 8\n" + X,
            ["lacks 'mask'", 'write input [ { name: "mask" data_type: TYPE_BOOL dims: [ -1 ] } ]'],
        ),
        (
            "max_batch_size: 8\n" + X + MASK.replace("BOOL", "INT32"),
            ["line 3: input[1].data_type of 'mask'", "write data_type: TYPE_BOOL"],
        ),
        (
            "max_batch_size: 8\n" + X.replace("-1 ]", "5 ]") + MASK,
            ["line 2: input[0].dims of 'x' are [7, 5], but the program has [-1, 4]"],
        ),
        (
            X + MASK,
            ["write dims: [-1, -1, 4]", "or write max_batch_size: 64 and leave the batch"],
        ),
        (
            "max_batch_size: 8\n" + X + MASK.replace("dims", "optional: true dims"),
            ["line 3: input[1].optional: the program needs 'mask'"],
        ),
    ],
)
def test_contradiction_names_the_line_and_what_to_write(
    source: ModelSource, text: str, parts: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        spec(source, text)
    for part in (str(source.config_file), *parts):
        assert part in str(error.value)


def test_numbers_at_the_end_of_names_are_positions() -> None:
    assert positions(["INPUT__1", "x__0"]) == [1, 0]
    assert positions(["INPUT__1", "x"]) is None
    assert positions(["a__1", "b__1"]) is None
    assert positions(["a__01"]) is None


def test_complete_configuration_fills_the_gaps_and_keeps_what_was_written() -> None:
    written = text_format.Parse(
        """
        dynamic_batching { preferred_batch_size: 4 }
        input { name: "x" format: FORMAT_NCHW dims: [ -1 ] data_type: TYPE_FP32 }
        output { name: "label" label_filename: "labels.txt" dims: 1 data_type: TYPE_STRING }
        """,
        ModelConfig(),
    )
    spec = ModelSpec(
        *("m", 1, "pytorch_pt2", 16),
        (TensorSpec("x", "FP32", [5]),),
        (TensorSpec("label", "BYTES", [1]),),
    )
    groups = [ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=2)]
    expected = text_format.Parse(
        """
        name: "m" backend: "pytorch" platform: "pytorch_pt2" max_batch_size: 16
        default_model_filename: "model.pt2"
        version_policy { latest { num_versions: 1 } }
        dynamic_batching { preferred_batch_size: 4 }
        input { name: "x" format: FORMAT_NCHW dims: [ 5 ] data_type: TYPE_FP32 }
        output { name: "label" label_filename: "labels.txt" dims: 1 data_type: TYPE_STRING }
        instance_group { kind: KIND_CPU count: 2 }
        """,
        ModelConfig(),
    )
    assert complete_config(spec, written, groups) == expected
    assert not written.name


def test_complete_configuration_of_a_model_without_any() -> None:
    spec = ModelSpec(
        *("m", 1, "python", 0),
        (TensorSpec("x", "BF16", [-1], optional=True),),
        (TensorSpec("y", "UINT8", []),),
    )
    complete = complete_config(spec)
    assert (complete.backend, complete.platform) == ("python", "")
    assert complete.default_model_filename == "model.py"
    assert complete.input[0].optional
    assert not complete.output[0].dims
    assert not complete.HasField("dynamic_batching")
