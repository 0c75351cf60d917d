"""Compiles models with TorchInductor: exported programs ahead of time, Python networks at warm-up.

A program becomes one native library for all of its shapes, so that nothing is compiled later and
nothing is guarded in a call. `torch.compile` would guard every weight: a 784-512-512-10 network
takes 340 µs that way, 113 as it is and 82 as a library.

Workers only: imports torch.
"""

from __future__ import annotations

import re
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram

from headrace_server.models.errors import ModelError

BACKEND = "inductor"

_UNPACKED = re.compile(r"(/.*/aotinductor_\w+)/.*/data/aotinductor/")

Runner = Callable[[list[Any]], list[Any]]
"""Takes the input tensors of a program in order, returns the outputs."""


def compiled_program(program: ExportedProgram, mode: str, file: Path) -> Runner:
    """Compile a program, which takes from seconds to minutes.

    Raises:
        ModelError: there is no C++ compiler, or torch cannot compile the program.
    """
    require_compiler(program_devices(program), file)
    _compile_in_this_process()
    settings = dict(torch._inductor.list_mode_options(mode))
    with (
        tempfile.TemporaryDirectory(prefix="headrace-") as directory,
        warnings.catch_warnings(action="ignore"),  # torch's of torch itself
    ):
        package = Path(directory) / "model.pt2"
        try:
            torch._inductor.aoti_compile_and_package(
                program, package_path=str(package), inductor_configs=settings
            )
        except Exception as error:
            raise _cannot_compile(file, error) from error
        run: Runner = open_package(package).boxed_run
        return run


def open_package(file: Path) -> Any:
    """The model in an AOTInductor package: `boxed_run` is a `Runner`, `get_call_spec()` and
    `get_metadata()` are what the package says of itself. Runs the package's native code, here and
    when called. Raises whatever torch does."""
    loader = torch._inductor.aoti_load_package(str(file), run_single_threaded=True).loader
    _forget_files()
    return loader


def _forget_files() -> None:
    """Delete what torch has unpacked: it stays mapped, and a worker that is killed leaves nothing
    behind. Elsewhere than on Linux torch deletes it when the model is closed."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return
    for directory in set(_UNPACKED.findall(maps)):
        shutil.rmtree(directory, ignore_errors=True)


def compile_modules(modules: Iterable[nn.Module], mode: str, backend: str = BACKEND) -> None:
    """Have modules compiled when they are first called, for all lengths at once.

    A shape that would have to be compiled anew ends in an error while the model warms up, once
    there are more than torch's limit; see `compile_no_more` for what comes later.
    """
    torch._dynamo.config.fail_on_recompile_limit_hit = True
    _compile_in_this_process()
    for module in modules:
        if backend == BACKEND:
            module.compile(dynamic=True, mode=mode)
        else:
            module.compile(dynamic=True, backend=backend)


def compile_no_more() -> None:
    """From now on, shapes that were not compiled run as they would without: no request waits for a
    compiler. Concerns the whole process."""
    torch.compiler.set_stance("eager_on_recompile")


def compiled_graphs() -> int:
    """How many graphs this process has compiled."""
    return int(torch._dynamo.utils.counters["stats"]["unique_graphs"])


def require_compiler(devices: Sequence[str], file: Path) -> None:
    """Raise ModelError where code for these devices cannot be made: on CPU that takes a C++
    compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    if "cpu" not in devices:
        return
    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise ModelError(
            f"{file}: 'compile' needs a C++ compiler on the PATH or in CXX, such as g++ or "
            "clang++; found none"
        ) from None


def program_devices(program: ExportedProgram) -> list[str]:
    """The types of device that a program's tensors lie on; "cpu" where it names none."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    found = {value.device.type for value in values if isinstance(value, torch.Tensor)}
    return sorted(found) or ["cpu"]


def _compile_in_this_process() -> None:
    """A pool of compiling children would take cores that are others', and outlive the warm-up."""
    torch._inductor.config.compile_threads = 1


def _cannot_compile(file: Path, error: Exception) -> ModelError:
    first_line = str(error).strip().partition("\n")[0]
    return ModelError(f"{file}: cannot be compiled: {type(error).__name__}: {first_line}")
