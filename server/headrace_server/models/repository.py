"""Finds the models of a repository: ``repository/<model>/<version>/<file>`` and config.pbtxt.

Reads directories and configurations, never a model file. Front-safe: standard library and
protobuf only.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from types import MappingProxyType

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.config_checks import check_config
from headrace_server.models.config_text import CONFIG_FILE, ConfigText, Locate, locate_nowhere
from headrace_server.models.errors import ConfigError, ModelError, RepositoryError
from headrace_server.models.parameter_names import doubtful_parameters

WARMUP_DIRECTORY = "warmup"
"""Where the files of a warm-up's `input_data_file` lie, in the model's directory."""

_VERSION = re.compile(r"[1-9][0-9]*")

GREATEST_VERSION = 2**63 - 1
"""That the protocol, the policy and the messages to workers have room for."""


class ModelKind(Enum):
    """What a model file is. The value is the end of its name."""

    EXPORTED = ".pt2"
    TORCHSCRIPT = ".pt"
    PYTHON = ".py"

    @property
    def filename(self) -> str:
        """The name such a file has unless the configuration gives another."""
        return f"model{self.value}"


@dataclass(frozen=True, slots=True)
class ModelSource:
    """One version of a model on disk: all that a worker needs to load it, with the config.

    `pickle`: whether the operator lets it load pickled Python objects.
    """

    name: str
    version: int
    file: Path
    kind: ModelKind
    pickle: bool = False

    @property
    def directory(self) -> Path:
        """The version directory."""
        return self.file.parent

    def files(self) -> list[Path]:
        """Every file that the model may consist of, sorted: that of a program, or all beside a
        model.py but what is hidden or Python's own. Raises OSError."""
        if self.kind is not ModelKind.PYTHON:
            return [self.file]
        found = (path for path in self.directory.rglob("*") if path.is_file())
        return sorted(path for path in found if not _is_by_product(path, self.directory))

    @property
    def config_file(self) -> Path:
        """Where the model's configuration lies, if it has one."""
        return self.file.parent.parent / CONFIG_FILE


@dataclass(frozen=True, slots=True)
class ModelEntry:
    """One model directory, broken or not.

    ``versions`` are those to serve: selected by the version policy, oldest first, with exactly one
    model file. A selected version without that, or with a number beyond `GREATEST_VERSION`, is in
    ``broken_versions`` with the reason.
    ``error`` says why the model as a whole cannot be served; then there are no ``versions``.
    ``notes`` name what lies in the directory, or stands in its configuration, and is not looked at.
    """

    name: str
    directory: Path
    versions: tuple[ModelSource, ...] = ()
    config: ModelConfig | None = None
    error: str | None = None
    broken_versions: Mapping[int, str] = field(default_factory=lambda: MappingProxyType({}))
    notes: tuple[str, ...] = ()


def scan(repository: Path) -> list[ModelEntry]:
    """Describe every model directory, sorted by name.

    Raises:
        RepositoryError: ``repository`` is not a directory that can be read.
    """
    return [read_model(directory) for directory in _directories(repository)]


def model_names(repository: Path) -> list[str]:
    """The names of all model directories, sorted. Hidden directories and files are no models.

    Raises:
        RepositoryError: ``repository`` is not a directory that can be read.
    """
    return [_readable(directory.name) for directory in _directories(repository)]


def directory_of(repository: Path, model: str) -> Path:
    """Where the model lies, or would lie, that `model_names` calls so. Raises RepositoryError."""
    found = (path for path in _directories(repository) if _readable(path.name) == model)
    return next(found, repository / model)


def _directories(repository: Path) -> list[Path]:
    try:
        found = sorted(repository.iterdir())
    except OSError as error:
        raise RepositoryError(
            f"expected a directory of models, {repository}: {error.strerror}"
        ) from error
    return [path for path in found if path.is_dir() and not path.name.startswith(".")]


def _readable(name: str) -> str:
    """The name of a file, with bytes that are no UTF-8 written out: no message may hold them."""
    return os.fsencode(name).decode(errors="backslashreplace")


def read_model(directory: Path, override: ModelConfig | None = None) -> ModelEntry:
    """Describe one model directory. Whatever is wrong with it is in the entry, never raised.

    ``override`` takes the place of config.pbtxt, as when a load request brings its own.
    """
    name = _readable(directory.name)
    if name != directory.name:
        return ModelEntry(name, directory, error=f"expected a name in UTF-8, got '{name}'")
    config = override
    try:
        config = _checked_config(directory, override)
        numbers, notes = _version_numbers(directory)
        selected = _select(numbers, config, directory)
    except (ConfigError, ModelError) as error:
        return ModelEntry(name, directory, config=config, error=str(error))
    except OSError as error:
        return ModelEntry(name, directory, error=f"{directory} cannot be read: {error.strerror}")

    versions: list[ModelSource] = []
    broken: dict[int, str] = {}
    for number in selected:
        if number > GREATEST_VERSION:
            broken[number] = (
                f"expected a version of at most {GREATEST_VERSION}, got {directory / str(number)}"
            )
            continue
        try:
            file, kind = _model_file(directory / str(number), config)
            versions.append(ModelSource(name, number, file, kind))
        except ModelError as error:
            broken[number] = str(error)
        except OSError as error:
            broken[number] = f"{directory / str(number)} cannot be read: {error.strerror}"
    return ModelEntry(
        name,
        directory,
        tuple(versions),
        config,
        error=None if versions else "; ".join(broken.values()),
        broken_versions=MappingProxyType(broken),
        notes=(*notes, *doubtful_parameters(config)),
    )


def _checked_config(directory: Path, override: ModelConfig | None) -> ModelConfig | None:
    file = directory / CONFIG_FILE
    locate: Locate = locate_nowhere
    config = override
    if config is None:
        if not os.path.lexists(file):  # a link to nothing was meant to say something
            return None
        if not lies_in(directory.parent, file):
            raise ConfigError(f"{file} {ESCAPES}")
        text = ConfigText.read(file)
        config, locate = text.parse(), text.locate
    check_config(config, directory.name, locate)
    filename = config.default_model_filename
    if filename and (os.path.basename(filename) != filename or filename in (".", "..")):
        raise ConfigError(
            f"{locate('default_model_filename')} must name a file in the version directory, "
            f"got '{filename}'"
        )
    if filename and _kind_of(filename) is None:
        raise ConfigError(
            f"{locate('default_model_filename')} must end in "
            f"{', '.join(kind.value for kind in ModelKind)}, got '{filename}'"
        )
    return config


def _version_numbers(directory: Path) -> tuple[list[int], tuple[str, ...]]:
    numbers: list[int] = []
    notes: list[str] = []
    for path in sorted(directory.iterdir()):
        if not path.is_dir() or path.name.startswith("."):
            continue
        if _VERSION.fullmatch(path.name):
            numbers.append(int(path.name))
        elif path.name.isdigit():
            notes.append(f"{path} is ignored: versions are positive, without leading zeros")
    return sorted(numbers), tuple(notes)


def _select(numbers: Sequence[int], config: ModelConfig | None, directory: Path) -> Sequence[int]:
    """Apply the version policy; by default the latest one version.

    Raises ModelError if that selects nothing.
    """
    if not numbers:
        raise ModelError(
            f"expected {directory / '1'} with one of {_filenames()}, found {_listing(directory)}"
            f"{_misplaced(directory)}"
        )
    policy = config.version_policy if config else None
    choice = policy.WhichOneof("policy_choice") if policy else None
    if policy is None or choice is None:
        return numbers[-1:]
    if choice == "all":
        return numbers
    if choice == "latest":
        return numbers[-(policy.latest.num_versions or 1) :]
    if not policy.specific.versions:
        raise ModelError(f"{directory / CONFIG_FILE}: version_policy.specific names no versions")
    return sorted(set(policy.specific.versions))


def _model_file(directory: Path, config: ModelConfig | None) -> tuple[Path, ModelKind]:
    filename = config.default_model_filename if config else ""
    kind = _kind_of(filename)
    candidates = (
        [(directory / filename, kind)]
        if kind
        else [(directory / kind.filename, kind) for kind in ModelKind]
    )
    found = [(file, kind) for file, kind in candidates if file.is_file()]
    if len(found) == 1:
        if not lies_in(directory.parent.parent, found[0][0]):
            raise ModelError(f"{found[0][0]} {ESCAPES}")
        return found[0]
    expected = f"'{filename}'" if filename else f"exactly one of {_filenames()}"
    raise ModelError(f"expected {expected} in {directory}, found {_listing(directory)}")


ESCAPES = "leads out of the repository; expected a file, or a link, that stays inside"


def lies_in(repository: Path, file: Path) -> bool:
    """Whether that is so once every link on the way is followed. The repository may be one."""
    # Unlike `Path.resolve`, this takes links that lead in a circle.
    return Path(os.path.realpath(file)).is_relative_to(os.path.realpath(repository))


def _is_by_product(path: Path, directory: Path) -> bool:
    parts = path.relative_to(directory).parts
    return any(part.startswith(".") or part == "__pycache__" for part in parts)


def _kind_of(filename: str) -> ModelKind | None:
    suffix = os.path.splitext(filename)[1]
    return next((kind for kind in ModelKind if kind.value == suffix), None)


def _filenames() -> str:
    return ", ".join(f"'{kind.filename}'" for kind in ModelKind)


def _misplaced(directory: Path) -> str:
    """What to do where a directory without versions has them one level off."""
    for kind in ModelKind:
        if (directory / kind.filename).is_file():
            return f"; move '{kind.filename}' to {directory / '1'}"
    with suppress(OSError):  # one of them cannot be read
        within = (path for path in directory.iterdir() if path.is_dir())
        if any(_VERSION.fullmatch(path.name) for model in within for path in model.iterdir()):
            return f"; {directory} looks like a repository itself"
    return ""


def _listing(directory: Path, limit: int = 8) -> str:
    names = sorted(_readable(path.name) for path in directory.iterdir())
    shown = ", ".join(f"'{name}'" for name in names[:limit])
    return (shown + (", ..." if len(names) > limit else "")) or "nothing"
