"""The protocol's sources: generated modules are current, and every element is explained."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
)

ROOT = Path(__file__).parents[2]
PROTOS = ROOT / "protos"

# Numbers of the fields that source paths are made of (descriptor.proto).
FILE_MESSAGE, FILE_ENUM, FILE_SERVICE = 4, 5, 6
MESSAGE_FIELD, MESSAGE_NESTED, MESSAGE_ENUM, MESSAGE_ONEOF = 2, 3, 4, 8
ENUM_VALUE, SERVICE_METHOD = 2, 2

Element = tuple[str, tuple[int, ...]]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[FileDescriptorProto]:
    out = tmp_path_factory.mktemp("protos") / "descriptors"
    protoc = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", "--include_source_info"]
    sources = [str(path) for path in sorted(PROTOS.rglob("*.proto"))]
    subprocess.run([*protoc, f"--descriptor_set_out={out}", *sources], check=True)
    return list(FileDescriptorSet.FromString(out.read_bytes()).file)


def enum_elements(enum: EnumDescriptorProto, path: tuple[int, ...]) -> Iterator[Element]:
    yield enum.name, path
    for index, value in enumerate(enum.value):
        yield f"{enum.name}.{value.name}", (*path, ENUM_VALUE, index)


def message_elements(message: DescriptorProto, path: tuple[int, ...]) -> Iterator[Element]:
    yield message.name, path
    for index, field in enumerate(message.field):
        yield f"{message.name}.{field.name}", (*path, MESSAGE_FIELD, index)
    for index, oneof in enumerate(message.oneof_decl):
        yield f"{message.name}.{oneof.name}", (*path, MESSAGE_ONEOF, index)
    for index, enum in enumerate(message.enum_type):
        yield from enum_elements(enum, (*path, MESSAGE_ENUM, index))
    for index, nested in enumerate(message.nested_type):
        if not nested.options.map_entry:  # the compiler's own, for a map field
            yield from message_elements(nested, (*path, MESSAGE_NESTED, index))


def elements(file: FileDescriptorProto) -> Iterator[Element]:
    for index, service in enumerate(file.service):
        yield service.name, (FILE_SERVICE, index)
        for number, method in enumerate(service.method):
            yield f"{service.name}.{method.name}", (FILE_SERVICE, index, SERVICE_METHOD, number)
    for index, enum in enumerate(file.enum_type):
        yield from enum_elements(enum, (FILE_ENUM, index))
    for index, message in enumerate(file.message_type):
        yield from message_elements(message, (FILE_MESSAGE, index))


def test_generated_modules_are_current() -> None:
    done = subprocess.run(
        [sys.executable, PROTOS / "generate.py", "--check"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_element_has_a_comment(files: list[FileDescriptorProto]) -> None:
    seen, silent = 0, []
    for file in files:
        commented = {
            tuple(location.path)
            for location in file.source_code_info.location
            if location.leading_comments.strip()
        }
        for name, path in elements(file):
            seen += 1
            if path not in commented:
                silent.append(f"{file.name}: {name}")
    assert seen > 500
    assert silent == []
