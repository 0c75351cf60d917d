"""Memory shared by clients: what can be opened, and what happens when it is not what it was."""

from __future__ import annotations

import fcntl
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace_server.workers.regions import Region, RegionError
from shared_memory import DIRECTORY, shared_file

pytestmark = pytest.mark.skipif(not DIRECTORY.is_dir(), reason="this system has no /dev/shm")

CONTENTS = bytes(range(64))


@pytest.fixture
def file() -> Iterator[Path]:
    with shared_file(CONTENTS) as file:
        yield file


def region(file: Path, offset: int = 0, nbytes: int = 64) -> Region:
    return Region("r", file.name, offset, nbytes)


def test_offsets_of_region_and_tensor_add_up(file: Path) -> None:
    span = region(file, 8, 40).span(4, 6)
    assert bytes(span.contents()) == CONTENTS[12:18]
    assert span.problem is None


def test_a_key_may_have_the_slash_of_shm_open(file: Path) -> None:
    opened = Region("r", "/" + file.name, 0, 64)
    assert bytes(opened.span(0, 64).contents()) == CONTENTS


@pytest.mark.parametrize(
    "key", ["", "/", ".", "..", "/..", "../etc/passwd", "//x", "a/b", "/a/b", "x\0y", "x" * 256]
)
def test_a_key_that_is_no_name_in_the_directory_is_refused(key: str) -> None:
    with pytest.raises(RegionError, match="expected a key of 1 to 255 characters"):
        Region("r", key, 0, 1)


def test_a_link_is_not_followed(file: Path) -> None:
    link = file.with_name(file.name + "-link")
    link.symlink_to("/etc/passwd")
    try:
        with pytest.raises(RegionError, match="Unable to open shared memory region"):
            region(link)
    finally:
        link.unlink()


def test_a_pipe_is_refused_without_waiting_for_its_other_end(file: Path) -> None:
    pipe = file.with_name(file.name + "-pipe")
    os.mkfifo(pipe)
    try:
        with pytest.raises(RegionError, match="another kind of file"):
            region(pipe)
    finally:
        pipe.unlink()


def test_an_object_that_is_not_there_is_refused_by_its_key() -> None:
    with pytest.raises(RegionError, match="Unable to open shared memory region: '/nobody'"):
        Region("r", "/nobody", 0, 1)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 65), (64, 1), (1 << 63, 1), (1, 1 << 63)])
def test_a_region_larger_than_its_object_is_refused(file: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(RegionError, match=f"at least {offset + nbytes} bytes .*, got 64"):
        region(file, offset, nbytes)


@pytest.mark.parametrize(("offset", "nbytes"), [(0, 33), (32, 1), (33, 0), (1 << 62, 1)])
def test_a_tensor_beyond_its_region_is_refused(file: Path, offset: int, nbytes: int) -> None:
    with pytest.raises(RegionError, match="Invalid offset"):
        region(file, 0, 32).span(offset, nbytes)


def test_memory_cut_short_reads_as_zeros_and_a_problem(file: Path) -> None:
    span = region(file).span(16, 32)
    os.truncate(file, 24)
    assert bytes(span.contents()) == CONTENTS[16:24] + bytes(24)
    assert span.problem is not None
    assert "has shrunk since it was registered: expected at least 48 bytes" in span.problem
    os.truncate(file, 64)
    span.contents()
    assert span.problem is None, "what counts is how it was last read"


def test_memory_cut_short_is_not_grown_by_writing(file: Path) -> None:
    opened = region(file)
    os.truncate(file, 8)
    with pytest.raises(RegionError, match=r"has shrunk .* at least 16 bytes .*, got 8"):
        opened.write(memoryview(b"x" * 8), 8)
    assert file.stat().st_size == 8


def test_what_is_written_is_in_the_object(file: Path) -> None:
    region(file).write(memoryview(b"answer"), 10)
    assert file.read_bytes() == CONTENTS[:10] + b"answer" + CONTENTS[16:]


def test_a_region_stays_what_it_was_when_its_name_means_something_else(file: Path) -> None:
    opened = region(file)
    file.unlink()
    file.write_bytes(b"other" * 20)
    assert bytes(opened.span(0, 64).contents()) == CONTENTS


def test_tensors_overlap_by_the_object_whatever_the_region(file: Path) -> None:
    one, other = region(file), region(file, 8, 16)
    assert one.span(0, 9).overlaps(other.span(0, 4))
    assert not one.span(0, 8).overlaps(other.span(0, 4))
    with shared_file(CONTENTS) as second:
        assert not one.span(0, 64).overlaps(region(second).span(0, 64))


def test_a_region_is_abandoned_once_the_lock_of_its_client_is_gone(file: Path) -> None:
    client = os.open(file, os.O_RDWR)
    fcntl.flock(client, fcntl.LOCK_SH)
    held = region(file)
    assert not held.abandoned
    os.close(client)  # as when it is killed
    assert held.abandoned


def test_a_region_that_nobody_locked_is_never_abandoned(file: Path) -> None:
    opened = region(file)
    file.unlink()
    assert not opened.abandoned


def test_the_descriptor_goes_with_the_last_tensor(file: Path) -> None:
    gc.collect()  # what earlier tests left may have descriptors, too
    before = set(os.listdir("/proc/self/fd"))
    opened = region(file)
    span = opened.span(0, 4)
    del opened
    gc.collect()
    assert bytes(span.contents()) == CONTENTS[:4]
    del span
    gc.collect()
    assert set(os.listdir("/proc/self/fd")) == before
