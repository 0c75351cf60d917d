"""Sweeps that are kept on disk: what makes a hit, what makes a miss, and that nothing fails."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from google.protobuf import text_format

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.core.cost import Sample
from headrace_server.models.repository import ModelKind, ModelSource
from headrace_server.models.spec import MadeInput, Making, Role, TensorSpec
from headrace_server.workers import sweep as sweep_module
from headrace_server.workers import sweep_cache
from headrace_server.workers.sweep_cache import known_sweep
from paced_program import PacedProgram, spec_of

SPEC = spec_of(TensorSpec("x", "FP32", [4]), max_batch_size=4)


class Bench:
    """Loads one model on disk again and again, with one cache."""

    def __init__(self, directory: Path, clock_to: Callable[[PacedProgram], None]) -> None:
        self._clock_to = clock_to
        self.cache = directory / "cache"
        self.file = directory / "repository" / "model" / "1" / "model.py"
        self.file.parent.mkdir(parents=True)
        self.file.write_text("a model")
        self.seconds_per_row = 0.01
        self.spec = SPEC
        self.role = Role.SERVE
        self.config: ModelConfig | None = None
        self.kind = ModelKind.PYTHON
        self.runs = 0

    @property
    def entries(self) -> list[Path]:
        return sorted((self.cache / "sweeps").glob("*"))

    def load(self) -> tuple[Sample, ...]:
        pace = self.seconds_per_row
        program = PacedProgram(self.spec, lambda rows, _: pace * rows)
        self._clock_to(program)
        source = ModelSource("model", 1, self.file, self.kind)
        samples = known_sweep(program.loaded(), source, self.config, self.role, self.cache)
        self.runs = len(program.shapes)
        return samples

    @property
    def hit(self) -> bool:
        """Whether the last load found its sweep: it then timed no more than one shape."""
        return self.runs <= sweep_module.REPETITIONS


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(
        tmp_path, lambda program: monkeypatch.setattr(sweep_module, "perf_counter", program.clock)
    )


def test_a_second_load_finds_the_sweep_of_the_first(bench: Bench) -> None:
    first = bench.load()
    assert not bench.hit
    assert bench.load() == first
    assert bench.hit
    assert len(bench.entries) == 1


def test_the_cache_is_readable_by_its_owner_alone(bench: Bench) -> None:
    bench.load()
    assert (bench.cache / "sweeps").stat().st_mode & 0o077 == 0
    assert bench.entries[0].stat().st_mode & 0o077 == 0


def write_weights(bench: Bench) -> None:
    (bench.file.parent / "weights.bin").write_bytes(b"other weights")


def change_model(bench: Bench) -> None:
    bench.file.write_text("A model")


def change_parameters(bench: Bench) -> None:
    text = 'parameters { key: "layers" value { string_value: "3" } }'
    bench.config = text_format.Parse(text, ModelConfig())


def change_precision(bench: Bench) -> None:
    text = 'parameters { key: "precision" value { string_value: "bf16" } }'
    bench.config = text_format.Parse(text, ModelConfig())


def compile_it(bench: Bench) -> None:
    text = 'parameters { key: "compile" value { string_value: "true" } }'
    bench.config = text_format.Parse(text, ModelConfig())


def lower_batch_size(bench: Bench) -> None:
    bench.spec = replace(SPEC, max_batch_size=2)


def change_role(bench: Bench) -> None:
    bench.role = Role.PREPARE


def make_an_input(bench: Bench) -> None:
    counts = MadeInput(TensorSpec("counts", "FP32", [-1]), Making.ELEMENT_COUNT, "x")
    bench.spec = replace(SPEC, made=(counts,))


@pytest.mark.parametrize(
    "change",
    [
        *(write_weights, change_model, change_parameters),
        *(change_precision, compile_it),
        *(lower_batch_size, change_role, make_an_input),
    ],
)
def test_what_may_change_the_cost_makes_a_miss(
    bench: Bench, change: Callable[[Bench], None]
) -> None:
    bench.load()
    change(bench)
    bench.load()
    assert not bench.hit
    bench.load()
    assert bench.hit


@pytest.mark.parametrize("name", ["device_name", "FORMAT"])
def test_another_device_or_format_makes_a_miss(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bench.load()
    other = (lambda device: "another") if name == "device_name" else 0
    monkeypatch.setattr(sweep_cache, name, other)
    bench.load()
    assert not bench.hit


def test_a_new_entry_takes_the_place_of_the_models_old_one(bench: Bench) -> None:
    bench.load()
    (old,) = bench.entries
    change_model(bench)
    bench.load()
    (new,) = bench.entries
    assert new != old


def test_a_copy_of_the_model_is_the_same_model(bench: Bench) -> None:
    first = bench.load()
    moved = bench.file.parents[2].with_name("release-2")
    shutil.copytree(bench.file.parents[2], moved)
    bench.file = moved / "model" / "1" / "model.py"
    assert bench.load() == first
    assert bench.hit


def test_what_python_leaves_beside_a_model_is_none_of_it(bench: Bench) -> None:
    bench.load()
    (bench.file.parent / "__pycache__").mkdir()
    (bench.file.parent / "__pycache__" / "model.pyc").write_bytes(b"code")
    (bench.file.parent / ".notes").write_text("hidden")
    bench.load()
    assert bench.hit


def test_a_program_is_its_file_alone(bench: Bench) -> None:
    bench.kind = ModelKind.EXPORTED
    bench.load()
    write_weights(bench)
    bench.load()
    assert bench.hit


def test_large_files_count_with_both_ends_size_and_time_of_change(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_cache, "WHOLE_BYTES", 4)
    status = bench.file.stat()

    def misses(contents: str, seconds_later: int = 0) -> bool:
        bench.file.write_text(contents)
        changed_ns = status.st_mtime_ns + seconds_later * 10**9
        os.utime(bench.file, ns=(changed_ns, changed_ns))
        bench.load()
        return not bench.hit

    assert misses("head....tail")
    assert not misses("head____tail"), "the middle of a large file is not read"
    assert misses("Head....tail")
    assert misses("head....Tail")
    assert misses("head.....tail")
    assert misses("head....tail", seconds_later=1)
    assert misses("headtail")
    assert not misses("headtail", seconds_later=1), "all of a small file is read"
    assert misses("heaDtail")


@pytest.mark.parametrize("factor", [1.6, 1 / 1.6])
def test_an_entry_that_no_longer_holds_is_measured_anew(bench: Bench, factor: float) -> None:
    bench.load()
    bench.seconds_per_row *= factor
    fresh = bench.load()
    assert not bench.hit
    assert fresh[-1] == (4, 0, pytest.approx(0.04 * factor))
    assert bench.load() == fresh
    assert bench.hit


@pytest.mark.parametrize(
    "text",
    [
        "",
        "no json",
        "{}",
        "\udcff",
        '{"model": "m/1", "device": "d", "threads": 1, "torch": "2", "samples": [[0, 0, 1.0]]}',
        '{"model": "m/1", "device": "d", "threads": 1, "torch": "2", "samples": [[1, 0, -1.0]]}',
        '{"model": "m/1", "device": "d", "threads": 1, "torch": "2", "samples": [[1, 0, 1e999]]}',
        '{"model": "m/1", "device": "d", "threads": 1, "torch": "2", "samples": []}',
    ],
)
def test_a_corrupt_entry_is_measured_anew(bench: Bench, text: str) -> None:
    first = bench.load()
    bench.entries[0].write_bytes(text.encode(errors="surrogateescape"))
    assert bench.load() == first
    assert not bench.hit
    bench.load()
    assert bench.hit


def test_a_cache_that_cannot_be_written_costs_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.cache.write_text("a file where a directory should be")
    assert bench.load() == bench.load()
    assert not bench.hit
    assert f"the sweep cannot be kept in {bench.cache}" in caplog.text


def test_a_model_file_that_cannot_be_read_again_costs_a_warning(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.kind = ModelKind.EXPORTED
    bench.file.unlink()
    assert bench.load()
    assert "cannot be read" in caplog.text
    assert not bench.entries


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are Unicode")
def test_a_name_that_is_no_utf_8_is_one_like_others(bench: Bench) -> None:
    odd = bench.file.with_name(os.fsdecode(b"\xff.txt"))
    odd.write_text("x")
    first = bench.load()
    assert bench.load() == first
    assert bench.hit
    odd.write_text("y")
    bench.load()
    assert not bench.hit


def test_nothing_in_the_cache_fails_a_load(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def breaks(*_: object) -> str:
        raise ValueError("not today")

    for part in ("_key", "_entry"):
        with monkeypatch.context() as broken:
            broken.setattr(sweep_cache, part, breaks)
            assert bench.load()
    assert caplog.text.count("not today") == 2
    assert not bench.entries


def test_without_a_directory_nothing_is_kept(tmp_path: Path, bench: Bench) -> None:
    program = PacedProgram(SPEC, lambda rows, _: 0.01)
    source = ModelSource("model", 1, bench.file, ModelKind.PYTHON)
    assert known_sweep(program.loaded(), source, None, Role.SERVE, None)
    assert not bench.cache.exists()


def test_the_cache_is_bounded_and_drops_what_was_not_used_for_longest(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep_cache, "MAX_ENTRIES", 2)
    ages = iter(range(9, 0, -1))

    def load(version: int) -> bool:
        file = bench.file.parents[1] / str(version) / "model.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"version {version}")
        bench.file = file
        known = set(bench.entries)
        bench.load()
        for entry in known ^ set(bench.entries):  # what is new gets an age of its own
            if entry.exists():
                age = 1_000_000 - next(ages)
                os.utime(entry, (age, age))
        return bench.hit

    assert not load(1)
    assert not load(2)
    assert load(1), "and it is the one used last now"
    assert not load(3)
    assert len(bench.entries) == 2
    assert load(1)
    assert not load(2)


def test_no_unfinished_file_is_left(bench: Bench) -> None:
    bench.load()
    bench.load()
    assert not [entry for entry in bench.entries if entry.name.startswith(".")]
