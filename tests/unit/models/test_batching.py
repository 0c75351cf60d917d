"""What a `dynamic_batching` block means, and which blocks contradict themselves."""

import pytest
from google.protobuf import text_format

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.batching import BatchingSettings, QueuePolicy, batching_settings
from headrace_server.models.errors import ConfigError


def settings(text: str, max_batch_size: int = 8) -> BatchingSettings:
    return batching_settings(text_format.Parse(text, ModelConfig()), max_batch_size)


def test_without_the_block_batching_is_adaptive() -> None:
    assert batching_settings(None, 16) == BatchingSettings(16)
    assert settings("max_batch_size: 8") == BatchingSettings(8)
    assert not settings("").static


def objective(value: str) -> str:
    return f'parameters {{ key: "objective_ms" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize(("value", "seconds"), [("50", 0.05), ("0.5", 0.0005), ("1e3", 1.0)])
def test_an_objective_is_given_in_milliseconds(value: str, seconds: float) -> None:
    assert settings(objective(value)).objective_s == pytest.approx(seconds)


@pytest.mark.parametrize("value", ["", "0", "-1", "soon", "nan", "inf", "50 ms"])
def test_an_objective_that_is_no_positive_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="must be a positive number of milliseconds") as refused:
        settings(objective(value))
    assert str(refused.value).endswith(f"got '{value}'")


def most_bytes(value: str) -> str:
    return f'parameters {{ key: "max_batch_bytes" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize("block", ["", "dynamic_batching { }"])
def test_a_bound_on_bytes_is_read_under_either_policy(block: str) -> None:
    assert settings(most_bytes("4096") + block).max_batch_bytes == 4096
    assert settings(block).max_batch_bytes is None


@pytest.mark.parametrize("value", ["", "0", "-1", "1.5", "1 GiB"])
def test_a_bound_on_bytes_that_is_no_positive_whole_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="must be a positive whole number of bytes") as refused:
        settings(most_bytes(value))
    assert str(refused.value).endswith(f"got '{value}'")


def hang_timeout(value: str) -> str:
    return f'parameters {{ key: "hang_timeout_s" value {{ string_value: "{value}" }} }}'


@pytest.mark.parametrize("block", ["", "dynamic_batching { }"])
def test_a_hang_timeout_is_read_under_either_policy(block: str) -> None:
    assert settings(hang_timeout("2.5") + block).hang_timeout_s == 2.5
    assert settings(block).hang_timeout_s is None


@pytest.mark.parametrize("value", ["", "0", "-1", "inf", "nan", "1 s"])
def test_a_hang_timeout_that_is_no_positive_number_is_refused(value: str) -> None:
    with pytest.raises(ConfigError, match="must be a positive number of seconds") as refused:
        settings(hang_timeout(value))
    assert str(refused.value).endswith(f"got '{value}'")


def test_an_objective_beside_fixed_rules_is_refused() -> None:
    with pytest.raises(ConfigError, match="dynamic_batching follows fixed rules; drop one"):
        settings(objective("50") + "dynamic_batching { }")


def test_empty_block_is_static_with_defaults() -> None:
    assert settings("dynamic_batching { }") == BatchingSettings(8, static=True)


def test_every_field_of_the_block_is_read() -> None:
    text = """
    dynamic_batching {
      preferred_batch_size: [ 8, 4 ]
      max_queue_delay_microseconds: 500
      priority_levels: 3
      default_priority_level: 2
      default_queue_policy { default_timeout_microseconds: 1000000 allow_timeout_override: true }
      priority_queue_policy { key: 1 value { timeout_action: DELAY max_queue_size: 7 } }
    }
    """
    assert settings(text) == BatchingSettings(
        max_batch_size=8,
        preferred_batch_sizes=(4, 8),
        max_queue_delay_s=pytest.approx(0.0005),  # type: ignore[arg-type]
        static=True,
        priority_levels=3,
        default_priority_level=2,
        default_queue_policy=QueuePolicy(default_timeout_s=1.0, allow_timeout_override=True),
        queue_policies={1: QueuePolicy("delay", max_queue_size=7)},
    )


def test_ordering_is_compatible_with_a_single_level() -> None:
    block = "preserve_ordering: true priority_levels: 1 default_priority_level: 1"
    assert settings(f"dynamic_batching {{ {block} }}").preserve_ordering


def test_priority_levels_may_be_as_many_as_the_wire_can_say() -> None:
    most = 2**64 - 1
    block = f"priority_levels: {most} default_priority_level: {most}"
    assert settings(f"dynamic_batching {{ {block} }}").default_priority_level == most


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ("preferred_batch_size: 9", "preferred_batch_size must be within 1 and max_batch_size 8"),
        ("preferred_batch_size: 0", "got 0"),
        ("priority_levels: 2", "default_priority_level must be within 1 and 2, got 0"),
        ("priority_levels: 2 default_priority_level: 3", "must be within 1 and 2, got 3"),
        ("default_priority_level: 1", "is 1, but there are no priority_levels"),
        (
            "preserve_ordering: true priority_levels: 2 default_priority_level: 1",
            "preserve_ordering cannot hold across 2 priority_levels",
        ),
        (
            "priority_levels: 1 default_priority_level: 1 priority_queue_policy { key: 2 }",
            "priority_queue_policy is for level 2, expected 1 to 1",
        ),
    ],
)
def test_contradictions_are_refused(block: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        settings(f"dynamic_batching {{ {block} }}")
