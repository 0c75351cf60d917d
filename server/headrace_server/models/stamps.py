"""Tells whether a model on disk is the one that was loaded, by names, sizes and times alone.

Front-safe: standard library and protobuf only.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.repository import WARMUP_DIRECTORY, ModelEntry, ModelSource

FileStamp = tuple[str, int, int, int]
"""Path, size, time of change, inode: a file that was replaced has another one of these."""


@dataclass(frozen=True, slots=True)
class Stamp:
    """What a version of a model was loaded from. Equal stamps: the same files and settings.

    `instances` stands apart from the rest of the configuration: how many workers there are can
    change without another load.
    """

    files: frozenset[FileStamp]
    config: bytes
    instances: bytes

    def differs_in_instances_alone(self, other: Stamp) -> bool:
        """Whether nothing but the instance groups has changed."""
        same = self.files == other.files and self.config == other.config
        return same and self.instances != other.instances


def file_stamps(source: ModelSource) -> frozenset[FileStamp]:
    """The files of one version as they lie there now. One that cannot be read counts as none."""
    return frozenset(_file_stamps(source))


def changed_files(stamps: Collection[FileStamp]) -> list[FileStamp]:
    """Those of these files that are not what they were, by name."""
    return [stamp for stamp in sorted(stamps) if _file_stamp(Path(stamp[0])) != stamp]


def stamp_of(source: ModelSource, config: ModelConfig | None) -> Stamp:
    """The stamp of one version as it lies there now, as by `file_stamps`."""
    rest, instances = ModelConfig(), ModelConfig()
    if config is not None:
        rest.CopyFrom(config)
        instances.instance_group.extend(config.instance_group)
        rest.ClearField("instance_group")
    return Stamp(
        file_stamps(source),
        rest.SerializeToString(deterministic=True),
        instances.SerializeToString(deterministic=True),
    )


def stamps_of(entry: ModelEntry) -> Mapping[int, Stamp]:
    """The stamp of each version that is to be served."""
    return {source.version: stamp_of(source, entry.config) for source in entry.versions}


def _file_stamps(source: ModelSource) -> Iterator[FileStamp]:
    try:
        files = source.files()
        warmup = source.directory.parent / WARMUP_DIRECTORY
        if warmup.is_dir():
            files += sorted(path for path in warmup.iterdir() if path.is_file())
    except OSError:
        return
    for path in files:
        stamp = _file_stamp(path)
        if stamp is not None:
            yield stamp


def _file_stamp(path: Path) -> FileStamp | None:
    try:
        status = path.stat()
    except OSError:
        return None
    return str(path), status.st_size, status.st_mtime_ns, status.st_ino
