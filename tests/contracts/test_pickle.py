"""Pickled objects in model files: no loader runs them unless the operator named the model."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import textwrap
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from headrace_server.models.errors import ModelError
from headrace_server.models.loading import FORCE_WEIGHTS_ONLY, load_model
from headrace_server.models.repository import ModelKind, ModelSource


@pytest.fixture(autouse=True)
def _torch_as_before() -> Iterator[None]:
    """A worker keeps the switch; this process has other tests to run."""
    before = os.environ.get(FORCE_WEIGHTS_ONLY)
    yield
    os.environ.pop(FORCE_WEIGHTS_ONLY, None)
    if before is not None:
        os.environ[FORCE_WEIGHTS_ONLY] = before


class Trap:
    """Makes a directory when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[object, ...]:
        return (os.mkdir, (str(self._trace),))


class Scale(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.ones(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.w


def exported(file: Path, change: Callable[[str, bytes], bytes]) -> None:
    """A real program with some members of its archive changed."""
    batch = torch.export.Dim("batch", max=8)
    program = torch.export.export(Scale(), (torch.ones(3, 2),), dynamic_shapes=({0: batch},))
    whole = io.BytesIO()
    torch.export.save(program, whole)
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(file, "w") as target:
        for name in source.namelist():
            target.writestr(name, change(name, source.read(name)))


def saved(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def in_weights(file: Path, trap: Trap) -> None:
    def change(name: str, data: bytes) -> bytes:
        if name.endswith("model_weights_config.json"):
            return data.replace(b'"use_pickle": false', b'"use_pickle": true')
        return saved(trap) if name.endswith("weights/weight_0") else data

    exported(file, change)


def in_example_inputs(file: Path, trap: Trap) -> None:
    exported(file, lambda name, data: saved(trap) if "sample_inputs" in name else data)


def in_opaque_constant(file: Path, trap: Trap) -> None:
    entry = (
        b'{"config": {"c": {"path_name": "opaque_obj_0", "is_param": false, '
        b'"use_pickle": true, "tensor_meta": null}}}'
    )

    def change(name: str, data: bytes) -> bytes:
        return entry if name.endswith("model_constants_config.json") else data

    exported(file, change)
    with zipfile.ZipFile(file, "a") as archive:
        root = archive.namelist()[0].partition("/")[0]
        archive.writestr(f"{root}/data/constants/opaque_obj_0", pickle.dumps(trap))


def in_weights_of_a_python_model(file: Path, trap: Trap) -> None:
    file.with_name("weights.bin").write_bytes(saved(trap))
    file.write_text(
        textwrap.dedent("""
            import torch
            from headrace_server import Model, TensorSpec

            class Careless(Model):
                inputs = [TensorSpec("x", "FP32", [2])]
                outputs = [TensorSpec("y", "FP32", [2])]

                def load(self, context):
                    torch.load(context.directory / "weights.bin", weights_only=False)

                def forward(self, x):
                    return x
        """)
    )


@pytest.mark.parametrize(
    ("kind", "set_trap"),
    [
        (ModelKind.EXPORTED, in_weights),
        (ModelKind.EXPORTED, in_example_inputs),
        (ModelKind.EXPORTED, in_opaque_constant),
        (ModelKind.PYTHON, in_weights_of_a_python_model),
    ],
)
# torch's own logging of the object that it did not expect, once allowed.
@pytest.mark.filterwarnings("ignore")
def test_a_pickled_object_is_refused_unless_the_model_is_named(
    kind: ModelKind, set_trap: Callable[[Path, Trap], None], tmp_path: Path
) -> None:
    file, trace = tmp_path / kind.filename, tmp_path / "trace"
    set_trap(file, Trap(trace))
    with pytest.raises(ModelError) as refused:
        load_model(ModelSource("m", 1, file, kind), None, "cpu")
    assert "pickled Python objects" in str(refused.value)
    assert "--allow-pickle m" in str(refused.value)
    assert not trace.exists()

    # The trap is real: allowed, it runs, whatever torch thinks of what comes out.
    with contextlib.suppress(Exception):
        load_model(ModelSource("m", 1, file, kind, pickle=True), None, "cpu")
    assert trace.exists()


def test_plain_tensors_load_without_leave(tmp_path: Path) -> None:
    exported(tmp_path / "model.pt2", lambda name, data: data)
    source = ModelSource("m", 1, tmp_path / "model.pt2", ModelKind.EXPORTED)
    assert load_model(source, None, "cpu").spec.max_batch_size == 8
