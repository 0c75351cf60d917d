"""A config.pbtxt is read, and each fault in it is named with its line and its cure."""

from pathlib import Path

import pytest

from headrace_server.models.config_checks import check_config
from headrace_server.models.config_lines import field_lines
from headrace_server.models.config_text import ConfigText, config_from_json
from headrace_server.models.errors import ConfigError

GOOD = """\
# A stock Triton configuration.
name: "m"
backend: "pytorch"
max_batch_size: 8
input [
  {
    name: "INPUT__0"  # { not a brace
    data_type: TYPE_FP32
    dims: [ 3, -1 ]
  },
  { name: "INPUT__1" data_type: TYPE_STRING dims: 1 dims: 2 }
]
output { name: 'OUTPUT__0', data_type: TYPE_INT64; dims: [ 1 ] }
instance_group [ { kind: KIND_CPU count: 2 } ]
dynamic_batching {
  preferred_batch_size: [ 4, 8 ]
  default_queue_policy: < timeout_action: DELAY max_queue_size: 7 >
}
optimization { graph { level: 1 } }
metric_tags { key: "team" value: "a" }
parameters: { key: "threads" value: { string_value: "2" } }
version_policy: { latest: { num_versions: 1 } }
"""


def check(text: str, name: str = "m") -> None:
    written = ConfigText(Path("m/config.pbtxt"), text)
    check_config(written.parse(), name, written.locate)


def test_stock_configuration_is_accepted() -> None:
    check(GOOD)


def test_lines_of_fields_are_found() -> None:
    lines = field_lines(GOOD)
    assert lines["name[0]"] == 2
    assert lines["input[0].name[0]"] == 7
    assert lines["input[0].dims[0]"] == 9
    assert lines["input[1]"] == 11
    assert lines["input[1].dims[1]"] == 11
    assert lines["output[0].data_type[0]"] == 13
    assert lines["instance_group[0].count[0]"] == 14
    assert lines["dynamic_batching[0].preferred_batch_size[0]"] == 16
    assert lines["dynamic_batching[0].default_queue_policy[0].max_queue_size[0]"] == 17
    assert lines["parameters[0].value[0].string_value[0]"] == 21
    assert lines["version_policy[0].latest[0].num_versions[0]"] == 22


def test_entries_of_maps_are_found_by_their_keys() -> None:
    lines = field_lines(
        'parameters { key: "a" value { string_value: "key" } }\n'
        "parameters [\n"
        "  { key: 'b' value { string_value: 'x' } },\n"
        "  { value { string_value: 'x' } key: 'c' } ]\n"
        'key: "d"'
    )
    assert [lines[f'parameters["{key}"]'] for key in "abc"] == [1, 2, 4]
    assert not [path for path in lines if '"d"' in path]


@pytest.mark.parametrize("text", ["{{{{", "a: [", 'a: "', "}", "a { b: [ {", ": : ["])
def test_lines_of_any_text_are_looked_for_without_an_error(text: str) -> None:
    assert isinstance(field_lines(text), dict)


FAULTS = [
    ("\nmax_batchsize: 8", "line 2: unknown field 'max_batchsize' in ModelConfig; write 'max_b"),
    ("input {\n  name: 'x'\n  data_typ: 1\n}", "line 3: unknown field 'data_typ' in ModelInput"),
    ("\n\ninput { data_type: TYPE_FLOAT32 }", "line 3: unknown value 'TYPE_FLOAT32' for DataType"),
    ("input { data_type: TYPE_FLOAT32 }", "TYPE_FP32"),
    ('max_batch_size: "8"', "line 1: "),
    ("input {", "config.pbtxt, line 1: "),
    ('\nname: "other"', "line 2: name is 'other', but the directory is 'm'; write name: \"m\""),
    ("\nmax_batch_size: -1", "line 2: max_batch_size must be 0 or more, got -1"),
    (
        'input {\n name: "x"\n data_type: TYPE_FP32\n dims: [ 3, -2 ] }',
        "line 4: input[0].dims of 'x' must be 1 or more, or -1, got -2",
    ),
    ('output { name: "x" data_type: TYPE_FP32 dims: 0 }', "must be 1 or more, or -1, got 0"),
    ('input { name: "x" dims: 1 }', "line 1: input[0] 'x' has no data_type; write data_type:"),
    ('input { name: "x" data_type: TYPE_FP32 }', "'x' has no dims; write dims: [ -1 ]"),
    ("input { data_type: TYPE_FP32 dims: 1 }", "has no name"),
    (
        'input [ { name: "x" data_type: TYPE_FP32 dims: 1 },\n'
        '{ name: "x" data_type: TYPE_FP32 dims: 1 } ]',
        "line 2: input[1].name 'x' appears twice",
    ),
    (
        '\nbackend: "onnxruntime"',
        "line 2: backend is 'onnxruntime'; served are 'pytorch'",
    ),
    ('platform: "tensorrt_plan"', "platform is 'tensorrt_plan'; served are 'pytorch_libtorch'"),
    ("instance_group { count: -1 }", "instance_group[0].count must be 0 or more"),
    (
        "max_batch_size: 4\ndynamic_batching {\n preferred_batch_size: [ 8 ] }",
        "line 3: dynamic_batching.preferred_batch_size must be within 1 and max_batch_size 4",
    ),
    (
        'parameters { key: "a" value { string_value: "b" } }\n'
        'parameters { key: "objective_ms" value { string_value: "soon" } }',
        'line 2: parameters["objective_ms"] must be a positive number of milliseconds, got',
    ),
    (
        'dynamic_batching { }\nparameters { key: "objective_ms" value { string_value: "5" } }',
        'line 2: parameters["objective_ms"] is for models that batch by what batches cost',
    ),
    (
        'max_batch_size: 4\nmodel_warmup { name: "w" batch_size: 8 }',
        "model_warmup[0].batch_size is above max_batch_size 4",
    ),
    (
        'model_warmup { name: "w" inputs { key: "x" value { input_data_file: "../x" } } }',
        "must name a file in the warmup folder, got '../x'",
    ),
]


@pytest.mark.parametrize(("text", "message"), FAULTS)
def test_fault_is_named_with_its_line_and_its_cure(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(text)
    assert message in str(error.value)
    assert str(error.value).startswith("m/config.pbtxt")


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("sequence_batching { }", "sequence_batching"),
        ("ensemble_scheduling { }", "ensemble_scheduling"),
        ("model_transaction_policy { decoupled: true }", "model_transaction_policy.decoupled"),
        ("response_cache { enable: true }", "response_cache.enable"),
        ('model_repository_agents { agents { name: "x" } }', "model_repository_agents"),
        ('model_operations { op_library_filename: "x" }', "model_operations.op_library_filename"),
        ('input { name: "x" reshape { shape: [ ] } }', "input[0].reshape"),
        ('output { name: "x" is_shape_tensor: true }', "output[0].is_shape_tensor"),
        ("instance_group { kind: KIND_MODEL }", "instance_group[0].kind"),
        ("instance_group { passive: true }", "instance_group[0].passive"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(text: str, path: str) -> None:
    with pytest.raises(ConfigError) as error:
        check(f"\n{text}")
    assert str(error.value) == (
        f"m/config.pbtxt, line 2: {path} is not supported by this version of Headrace"
    )


@pytest.mark.parametrize(
    "text",
    [
        "model_transaction_policy { decoupled: false }",
        "response_cache { enable: false }",
        "optimization { cuda { graphs: true } }",
        "instance_group { rate_limiter { priority: 2 } host_policy: 'numa0' }",
    ],
)
def test_what_does_no_harm_is_accepted(text: str) -> None:
    check(text)


def test_unreadable_text_is_a_configuration_error(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    with pytest.raises(ConfigError, match="cannot be read"):
        ConfigText.read(file)
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="expected UTF-8 text"):
        ConfigText.read(file)


def test_a_configuration_may_come_as_json_in_either_spelling() -> None:
    for text in ('{"max_batch_size": 4}', '{"maxBatchSize": 4}'):
        assert config_from_json(text).max_batch_size == 4


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("max_batch_size: 4", "model configuration: expected JSON"),
        ('{"max_batch_sise": 4}', "unknown field 'max_batch_sise' in ModelConfig; write"),
        ('{"max_batch_size": "many"}', "model configuration: .*max_batch_size"),
        ("[]", "expected a JSON object"),
        ("[" * 100_000, "expected JSON"),
        (r'{"\ud800": 1}', "expected JSON: .* surrogates not allowed"),
        (r'{"input": [{"data_type": "\udfff"}]}', "expected JSON: .* surrogates not allowed"),
    ],
)
def test_json_that_is_no_configuration_is_refused(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        config_from_json(text)
