"""Tensor specs refuse what the protocol cannot express."""

import pytest

from headrace_server import TensorSpec


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("x", "float32", [1]), "expected a datatype among .*FP32.*, got 'float32'"),
        (("x", "FP32", [-2]), r"dimensions are >= 0 or -1, got \(-2,\)"),
        (("", "FP32", [1]), "expected the name of a tensor"),
    ],
)
def test_impossible_tensors_are_refused(
    arguments: tuple[str, str, list[int]], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TensorSpec(*arguments)
