"""Our modules and tritonclient's in one process: same messages, neither in the other's way."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TRITON_PYTHON = Path(
    os.environ.get("HEADRACE_TRITON_PYTHON", ROOT / ".venv-triton" / "bin" / "python")
)

pytestmark = pytest.mark.skipif(
    not TRITON_PYTHON.exists(), reason=f"no interpreter with tritonclient at {TRITON_PYTHON}"
)

OURS = "import headrace"
THEIRS = "import tritonclient.grpc"

COMPARE = """
from headrace.protocol import grpc_service_pb2, model_config_pb2
from tritonclient.grpc import model_config_pb2 as their_config, service_pb2 as their_service


def facts(file):
    found = {}

    def visit_enum(enum):
        found[enum.full_name] = {(value.name, value.number) for value in enum.values}

    def visit(message):
        found[message.full_name] = {
            (
                field.name,
                field.number,
                field.type,
                field.is_repeated,
                field.message_type and field.message_type.full_name,
                field.enum_type and field.enum_type.full_name,
                field.containing_oneof and field.containing_oneof.name,
            )
            for field in message.fields
        }
        for nested in message.nested_types:
            visit(nested)
        for enum in message.enum_types:
            visit_enum(enum)

    for message in file.message_types_by_name.values():
        visit(message)
    for enum in file.enum_types_by_name.values():
        visit_enum(enum)
    for service in file.services_by_name.values():
        found[service.full_name] = {
            (
                method.name,
                method.input_type.full_name,
                method.output_type.full_name,
                method.client_streaming,
                method.server_streaming,
            )
            for method in service.methods
        }
    return found


ours = facts(grpc_service_pb2.DESCRIPTOR) | facts(model_config_pb2.DESCRIPTOR)
theirs = facts(their_service.DESCRIPTOR) | facts(their_config.DESCRIPTOR)
shared = ours.keys() & theirs.keys()
assert len(shared) > 100, len(shared)
for name in sorted(ours.keys() ^ theirs.keys()):
    print("only", "ours" if name in ours else "theirs", name)
for name in sorted(shared):
    if ours[name] != theirs[name]:
        print("differs", name, sorted(map(str, ours[name] ^ theirs[name])))
"""

EXCHANGE = """
import numpy
from headrace.protocol import grpc_service_pb2
from headrace.tensors import decode_tensor

given = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
tensor = tritonclient.grpc.InferInput("x", [2, 3], "FP32")
tensor.set_data_from_numpy(given)
sent = tritonclient.grpc.service_pb2.ModelInferRequest(model_name="m")
sent.inputs.append(tensor._get_tensor())
sent.raw_input_contents.append(tensor._get_content())
sent.parameters["priority"].uint64_param = 3
came = grpc_service_pb2.ModelInferRequest.FromString(sent.SerializeToString())
assert came.parameters["priority"].uint64_param == 3
array = decode_tensor(came.inputs[0].datatype, came.inputs[0].shape, came.raw_input_contents[0])
assert numpy.array_equal(array, given)
"""


def run(*statements: str) -> str:
    done = subprocess.run(
        [TRITON_PYTHON, "-c", "\n".join(statements)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("order", [(OURS, THEIRS), (THEIRS, OURS)], ids=["ours", "theirs"])
def test_either_library_may_be_imported_first(order: tuple[str, str]) -> None:
    run(*order, EXCHANGE)


def test_every_message_enum_and_method_is_the_same() -> None:
    assert run(THEIRS, COMPARE) == ""
