"""Real inputs for `headrace bench`: from a file to the samples that its requests consist of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.answers import ModelMetadata, TensorMetadata
from headrace.tensors import DATATYPES
from headrace_server.bench.inputs import Sample, row_shape
from headrace_server.cli.errors import USAGE, CommandError
from headrace_server.cli.values import (
    checked_array,
    in_shape,
    known_input,
    loading,
    parse_json,
)

SUFFIXES = (".npz", ".json", ".jsonl", ".txt")

Array = npt.NDArray[Any]


def read_samples(file: Path, metadata: ModelMetadata, *, batched: bool) -> list[Sample]:
    """The samples in a file, at least one.

    `.npz`: an array for each input, its first dimension counts the samples. `.json`: an object
    from input names to lists of samples. `.jsonl`: such an object for each sample, one a line.
    `.txt`: one text a line, for a model whose only input is BYTES.

    Raises:
        CommandError: the file cannot be read, or holds something else; the text says what.
    """
    # A sample is one row: what it has to be like is the input without the batch dimension.
    tensors = {
        tensor.name: TensorMetadata(tensor.name, tensor.datatype, row_shape(tensor, batched))
        for tensor in metadata.inputs
    }
    try:
        match file.suffix:
            case ".npz":
                samples = _from_columns(str(file), _numpy_columns(file, tensors, metadata.name))
            case ".json":
                samples = _from_columns(str(file), _json_columns(file, tensors, metadata.name))
            case ".jsonl":
                samples = [
                    _from_object(line, f"{file} line {number}", tensors, metadata.name)
                    for number, line in enumerate(file.read_text().splitlines(), 1)
                    if line.strip()
                ]
            case ".txt":
                samples = _from_lines(file, tensors, metadata.name)
            case _:
                raise CommandError(
                    f"expected an --input file that ends in {', '.join(SUFFIXES)}, got {file}",
                    USAGE,
                )
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise CommandError(f"cannot read {file}: {error}") from None
    if not samples:
        raise CommandError(f"expected samples in {file}, found none", USAGE)
    return samples


def _from_columns(source: str, columns: Mapping[str, Sequence[Array]]) -> list[Sample]:
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CommandError(f"{source}: expected as many samples of each input, got {listed}", USAGE)
    rows = zip(*columns.values(), strict=True)
    return [dict(zip(columns, row, strict=True)) for row in rows]


def _numpy_columns(
    file: Path, tensors: Mapping[str, TensorMetadata], model: str
) -> dict[str, Sequence[Array]]:
    with loading(file), file.open("rb") as opened:
        archive = np.load(opened, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise ValueError("expected an archive of arrays, got a single one")
        arrays: dict[str, Array] = dict(archive)
    columns: dict[str, Sequence[Array]] = {}
    for name, array in arrays.items():
        tensor = known_input(name, tensors, model)
        if array.ndim == 0:
            raise CommandError(f"{file}: expected samples of input '{name}', got a scalar")
        columns[name] = [in_shape(row, tensor) for row in _as_datatype(array, tensor, file)]
    return columns


def _as_datatype(array: Array, tensor: TensorMetadata, file: Path) -> Array:
    if tensor.datatype == "BYTES":
        if array.dtype.kind in "SU":
            return array.astype(object)
    else:
        dtype = DATATYPES[tensor.datatype].numpy or np.dtype(np.float32)  # numpy has no BF16
        if np.can_cast(array.dtype, dtype, "same_kind"):
            return array.astype(dtype, copy=False)
    raise CommandError(
        f"{file}: input '{tensor.name}' is {tensor.datatype}, got {array.dtype}", USAGE
    )


def _json_columns(
    file: Path, tensors: Mapping[str, TensorMetadata], model: str
) -> dict[str, Sequence[Array]]:
    columns: dict[str, Sequence[Array]] = {}
    for name, values in _object(file.read_text(), str(file)).items():
        tensor = known_input(name, tensors, model)
        if not isinstance(values, list):
            raise CommandError(f"{file}: expected a list of samples of input '{name}'", USAGE)
        columns[name] = [in_shape(checked_array(value, tensor), tensor) for value in values]
    return columns


def _from_object(
    text: str, source: str, tensors: Mapping[str, TensorMetadata], model: str
) -> Sample:
    sample: dict[str, Array] = {}
    for name, value in _object(text, source).items():
        tensor = known_input(name, tensors, model)
        sample[name] = in_shape(checked_array(value, tensor), tensor)
    return sample


def _object(text: str, source: str) -> dict[str, object]:
    value = parse_json(text, source)
    if not isinstance(value, dict) or not value:
        raise CommandError(
            f"{source}: expected a JSON object with the model's inputs, got {text.strip()[:40]!r}",
            USAGE,
        )
    return value


def _from_lines(file: Path, tensors: Mapping[str, TensorMetadata], model: str) -> list[Sample]:
    only, *others = tensors.values()
    if others or only.datatype != "BYTES":
        listed = ", ".join(f"{tensor.name} {tensor.datatype}" for tensor in tensors.values())
        raise CommandError(
            f"a .txt file is for models whose only input is BYTES; '{model}' takes {listed}", USAGE
        )
    return [
        {only.name: in_shape(np.array(line, dtype=object), only)}
        for line in file.read_bytes().splitlines()
        if line.strip()
    ]
