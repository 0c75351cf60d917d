"""Shared memory that grows, is seen by its reader, and leaves nothing behind."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace_server.workers.slab import (
    ALIGNMENT,
    KEPT_BYTES,
    MIN_BYTES,
    REVIEW_EVERY,
    ReadableSlab,
    WritableSlab,
    aligned,
)


@pytest.fixture
def slab() -> Iterator[WritableSlab]:
    slab = WritableSlab()
    yield slab
    slab.close()


def is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


@given(st.integers(0, 1 << 40))
def test_aligned_is_the_next_multiple(nbytes: int) -> None:
    assert aligned(nbytes) % ALIGNMENT == 0
    assert 0 <= aligned(nbytes) - nbytes < ALIGNMENT


def test_what_is_written_is_read_at_the_other_end(slab: WritableSlab) -> None:
    descriptor = slab.reserve(100)
    assert descriptor is not None
    reader = ReadableSlab(descriptor, slab.nbytes)
    slab.view[10:15] = b"hello"
    assert bytes(reader.view[10:15]) == b"hello"
    slab.view[10:15] = b"again"
    assert bytes(reader.view[10:15]) == b"again"
    reader.close()


def test_one_huge_batch_does_not_hold_its_memory_for_good(slab: WritableSlab) -> None:
    assert kept(slab.reserve(8 * KEPT_BYTES)) is False
    small = [kept(slab.reserve(KEPT_BYTES // 4)) for _ in range(2 * REVIEW_EVERY)]
    assert small.count(False) == 1
    assert small.index(False) <= REVIEW_EVERY
    assert slab.nbytes == KEPT_BYTES // 4 == len(slab.view)


def test_memory_that_is_used_now_and_then_is_kept(slab: WritableSlab) -> None:
    slab_bytes = 4 * KEPT_BYTES
    assert kept(slab.reserve(slab_bytes)) is False
    for _ in range(5):
        assert all(kept(slab.reserve(1)) for _ in range(REVIEW_EVERY - 1))
        assert kept(slab.reserve(slab_bytes))


def test_memory_of_everyday_size_is_kept_however_little_is_asked_for(slab: WritableSlab) -> None:
    assert kept(slab.reserve(KEPT_BYTES)) is False
    assert all(kept(slab.reserve(1)) for _ in range(3 * REVIEW_EVERY))


def kept(descriptor: int | None) -> bool:
    if descriptor is not None:
        os.close(descriptor)
    return descriptor is None


def test_the_reader_closes_the_descriptor_it_was_given(slab: WritableSlab) -> None:
    descriptor = slab.reserve(1)
    assert descriptor is not None
    ReadableSlab(descriptor, slab.nbytes).close()
    assert not is_open(descriptor)


def test_a_reader_that_cannot_map_closes_the_descriptor_too(tmp_path: Path) -> None:
    descriptor = os.open(tmp_path / "empty", os.O_RDWR | os.O_CREAT)
    with pytest.raises((ValueError, OSError)):
        ReadableSlab(descriptor, 1 << 20)
    assert not is_open(descriptor)


def test_present_memory_is_used_again_while_it_is_large_enough(slab: WritableSlab) -> None:
    first = slab.reserve(10)
    assert first is not None
    os.close(first)
    assert slab.nbytes == MIN_BYTES
    assert slab.reserve(MIN_BYTES) is None
    assert slab.reserve(0) is None


def test_it_grows_to_a_power_of_two(slab: WritableSlab) -> None:
    for nbytes, size in ((10, MIN_BYTES), (MIN_BYTES + 1, 2 * MIN_BYTES), (1 << 20, 1 << 20)):
        descriptor = slab.reserve(nbytes)
        assert descriptor is not None
        os.close(descriptor)
        assert slab.nbytes == len(slab.view) == size
        slab.view[size - 1 :] = b"x"


def test_the_reader_keeps_the_old_memory_when_the_writer_grows(slab: WritableSlab) -> None:
    descriptor = slab.reserve(10)
    assert descriptor is not None
    reader = ReadableSlab(descriptor, slab.nbytes)
    slab.view[:3] = b"old"
    grown = slab.reserve(2 * MIN_BYTES)
    assert grown is not None
    os.close(grown)
    slab.view[:3] = b"new"
    assert bytes(reader.view[:3]) == b"old"
    reader.close()


def test_closing_is_safe_while_something_still_looks_at_the_memory(slab: WritableSlab) -> None:
    descriptor = slab.reserve(10)
    assert descriptor is not None
    reader = ReadableSlab(descriptor, slab.nbytes)
    slab.view[:3] = b"abc"
    tensor = reader.view[:3]
    reader.close()
    slab.close()
    assert bytes(tensor) == b"abc"


def test_closing_twice_is_safe(slab: WritableSlab) -> None:
    slab.close()
    descriptor = slab.reserve(10)
    assert descriptor is not None
    os.close(descriptor)
    slab.close()
    slab.close()
    assert slab.nbytes == len(slab.view) == 0


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at /dev/shm and /proc")
def test_nothing_with_a_name_is_left(slab: WritableSlab) -> None:
    before = set(os.listdir("/dev/shm"))
    descriptor = slab.reserve(1 << 20)
    assert descriptor is not None
    try:
        assert set(os.listdir("/dev/shm")) == before
        assert "(deleted)" in str(Path(f"/proc/self/fd/{descriptor}").readlink())
        assert not os.get_inheritable(descriptor)
    finally:
        os.close(descriptor)


def test_without_memfd_an_unlinked_file_serves(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, slab: WritableSlab
) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    descriptor = slab.reserve(10)
    assert descriptor is not None
    assert list(tmp_path.iterdir()) == []
    assert not os.get_inheritable(descriptor)
    reader = ReadableSlab(descriptor, slab.nbytes)
    slab.view[:3] = b"abc"
    assert bytes(reader.view[:3]) == b"abc"
    reader.close()


def test_a_failed_reservation_leaves_the_slab_as_it_was(
    monkeypatch: pytest.MonkeyPatch, slab: WritableSlab
) -> None:
    descriptor = slab.reserve(10)
    assert descriptor is not None
    os.close(descriptor)
    slab.view[:3] = b"abc"
    opened = []

    def out_of_memory(descriptor: int, length: int) -> None:
        opened.append(descriptor)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "ftruncate", out_of_memory)
        with pytest.raises(OSError, match="No space left"):
            slab.reserve(1 << 20)
    assert not is_open(opened[0])
    assert bytes(slab.view[:3]) == b"abc"
