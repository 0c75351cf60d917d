"""Keeps what sweeps measured on disk, so that a model that was loaded before is not timed again.

Workers only: imports torch. Nothing here ever fails a load: a cache that cannot be used is logged
and done without.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import msgspec
import torch

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.core.cost import Sample
from headrace_server.models.loading import LoadedModel
from headrace_server.models.repository import ModelSource
from headrace_server.models.spec import Role
from headrace_server.workers.sweep import can_sweep, still_holds, sweep

UNFINISHED = ".unfinished-"

FORMAT = 1
"""Raise it when a sweep times other things than before: older entries are then not found."""

DIRECTORY = "sweeps"
MAX_ENTRIES = 256
"""Of a kilobyte or two each; those that were not used for longest go first."""

WHOLE_BYTES = 1 << 20
"""Files up to twice this size count with all their contents. Of larger ones the first and the last
so many bytes do, with size and time of change: a zip archive, which model.pt2 and model.pt are,
ends with the checksums of all it holds, and a digest of gigabytes would take longer than a sweep.
What slips through all the same is found when one batch is timed again."""

DIGEST_BYTES = 16

log = logging.getLogger("headrace.worker")


class _Entry(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One file: what was measured, and for a curious reader of what and where."""

    model: str
    device: str
    threads: int
    torch: str
    samples: tuple[
        tuple[
            Annotated[int, msgspec.Meta(ge=1)],
            Annotated[int, msgspec.Meta(ge=0)],
            Annotated[float, msgspec.Meta(gt=0)],
        ],
        ...,
    ]


def known_sweep(
    model: LoadedModel,
    source: ModelSource,
    config: ModelConfig | None,
    role: Role,
    cache: Path | None,
) -> tuple[Sample, ...]:
    """Batches of a freshly loaded model with their durations, measured now or at an earlier load.

    Args:
        model: warm already, and one that `can_sweep`; of others nothing is said.
        source: its files.
        config: its configuration, if any.
        role: what the worker does with it.
        cache: directory where sweeps are kept; None: nowhere.
    """
    if not can_sweep(model):
        return ()
    if cache is None:
        return sweep(model)
    kept = _Kept(cache / DIRECTORY)
    try:
        place, key = _place(model, source, role), _key(model, source, config, role)
        samples = kept.find(key)
    except Exception as error:
        log.warning("the sweep is not kept, it or the model's files cannot be read: %s", error)
        return sweep(model)
    if samples and still_holds(model, samples):
        return samples
    if samples:
        log.info("batches take another time than at an earlier load; timing them anew")
    samples = sweep(model)
    if samples:
        try:
            kept.put(place, key, _entry(model, source, samples))
        except Exception as error:
            log.warning("the sweep cannot be kept in %s: %s", cache / DIRECTORY, error)
    return samples


def device_name(device: str) -> str:
    """What the device is called by its maker: that of a GPU, or of the machine's CPU."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            name, _, value = line.partition(":")
            if name.strip() == "model name":
                return value.strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


class _Kept:
    """One file for each sweep, named by two digests.

    The first says where the model stands: version directory, role, device and threads; a newer
    entry takes the place of an older one there. The second says what was measured: the model's
    files, signature and parameters, role, device, torch's threads and version. It alone makes a
    hit, so that a copy of the model need not be timed again.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def find(self, key: str) -> tuple[Sample, ...]:
        """The samples kept under this key; empty when there are none that can be read."""
        for file in self._directory.glob(f"*-{key}.json"):
            try:
                samples = msgspec.json.decode(file.read_bytes(), type=_Entry).samples
            except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                log.warning("%s is no sweep that can be used: %s", file, error)
                continue
            with contextlib.suppress(OSError):  # it may be somebody else's, to be read only
                os.utime(file)
            return samples
        return ()

    def put(self, place: str, key: str, entry: _Entry) -> None:
        """Write an entry, whole or not at all, and drop those that it replaces. Raises OSError."""
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, written = tempfile.mkstemp(dir=self._directory, prefix=UNFINISHED)
        try:
            with open(descriptor, "wb") as file:
                file.write(msgspec.json.encode(entry))
            os.replace(written, self._directory / f"{place}-{key}.json")
        except BaseException:
            os.unlink(written)
            raise
        self._clean(place, key)

    def _clean(self, place: str, key: str) -> None:
        """Drop what was kept at this place before, and beyond `MAX_ENTRIES` what was used least
        lately, with the remains of writers that were killed."""
        for file in self._directory.glob(f"{place}-*.json"):
            if file.name != f"{place}-{key}.json":
                file.unlink(missing_ok=True)
        files = [file for file in self._directory.iterdir() if file.is_file()]
        for file in sorted(files, key=_used_ns, reverse=True)[MAX_ENTRIES:]:
            file.unlink(missing_ok=True)


def _entry(model: LoadedModel, source: ModelSource, samples: tuple[Sample, ...]) -> _Entry:
    return _Entry(
        f"{source.name}/{source.version}",
        device_name(model.device),
        torch.get_num_threads(),
        str(torch.__version__),
        samples,
    )


def _place(model: LoadedModel, source: ModelSource, role: Role) -> str:
    directory = _in_utf8(source.directory.resolve())
    return _digest([directory, role.value, device_name(model.device), torch.get_num_threads()])


def _key(model: LoadedModel, source: ModelSource, config: ModelConfig | None, role: Role) -> str:
    spec = model.spec
    parameters = {} if config is None else config.parameters
    return _digest(
        [
            FORMAT,
            role.value,
            device_name(model.device),
            torch.get_num_threads(),
            str(torch.__version__),
            spec.max_batch_size,
            [str(spec.platform), *map(repr, spec.batched_inputs), *map(repr, spec.made)],
            sorted((name, value.string_value) for name, value in parameters.items()),
            list(_contents(source)),
        ]
    )


def _contents(source: ModelSource) -> Iterator[tuple[str, int, int, str]]:
    """Name, size, time of change (0 where the contents say it all) and digest of every file that
    the model may consist of."""
    for path in source.files():
        status = path.stat()
        partly = status.st_size > 2 * WHOLE_BYTES
        with path.open("rb") as file:
            digest = hashlib.blake2b(file.read(WHOLE_BYTES), digest_size=DIGEST_BYTES)
            if partly:
                file.seek(-WHOLE_BYTES, os.SEEK_END)
            digest.update(file.read(WHOLE_BYTES))
        yield (
            _in_utf8(path.relative_to(source.directory)),
            status.st_size,
            status.st_mtime_ns if partly else 0,
            digest.hexdigest(),
        )


def _in_utf8(path: Path) -> str:
    """The path, with bytes that are no UTF-8 written out."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _used_ns(file: Path) -> int:
    try:
        return file.stat().st_mtime_ns
    except OSError:
        return 0  # another server has just dropped it


def _digest(parts: list[object]) -> str:
    return hashlib.blake2b(msgspec.json.encode(parts), digest_size=DIGEST_BYTES).hexdigest()
