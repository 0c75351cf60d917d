"""Keeps the weights of an exported program once in memory, however many workers run it.

The first worker of a model writes them to a memory file that the front hands to each; every worker
maps that privately: pages are shared as long as nobody writes to them, and who does gets a copy of
its own (copy on write), so that no worker can change another one's weights. The file has no name:
it goes with the last process that has it.

Workers only, on Linux: imports torch, and seals are Linux's.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch.export import ExportedProgram

ALIGNMENT = 64
"""As torch aligns what it allocates itself."""

LEAST_BYTES = 1 << 20
"""Smaller tensors stay where they are: a page each would be more than they are worth."""

SEALS = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK


def share_weights(program: ExportedProgram, descriptor: int) -> int:
    """Put the large weights of a program into the memory file, unless another worker has, and let
    the program use them there; returns how many bytes of it do.

    A weight that is not, byte for byte, what the file has in its place stays the program's own: the
    model's file may have changed since.
    """
    weights = _storages(program)
    with _alone_with(descriptor):
        if not fcntl.fcntl(descriptor, fcntl.F_GET_SEALS) & fcntl.F_SEAL_WRITE:
            _fill(descriptor, list(weights.values()))
    size = os.fstat(descriptor).st_size
    if not size:
        return 0
    # A private mapping may be written to whatever the seals say.
    mapped = mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE)
    moved: dict[int, torch.UntypedStorage] = {}
    for (address, own), offset in zip(weights.items(), _offsets(weights.values()), strict=True):
        if offset + own.nbytes() > size:
            break
        there = _bytes(mapped, own.nbytes(), offset)
        if torch.equal(torch.empty(0, dtype=torch.uint8).set_(own), there):
            moved[address] = there.untyped_storage()
    for tensor in program.state_dict.values():
        storage = moved.get(tensor.untyped_storage().data_ptr())
        if storage is not None:
            tensor.data = torch.empty(0, dtype=tensor.dtype).set_(
                storage, tensor.storage_offset(), tensor.shape, tensor.stride()
            )
    return sum(storage.nbytes() for storage in moved.values())


@contextmanager
def _alone_with(descriptor: int) -> Iterator[None]:
    """Keep other workers out of the file meanwhile; one that ends in here lets the next one in."""
    # A lock goes with what was opened, and all workers were handed the same: each opens it anew.
    own = os.open(f"/proc/self/fd/{descriptor}", os.O_RDWR)
    try:
        fcntl.flock(own, fcntl.LOCK_EX)
        yield
    finally:
        os.close(own)


def _storages(program: ExportedProgram) -> dict[int, torch.UntypedStorage]:
    """The memory of the large weights by address, once where several share it."""
    found = {}
    for tensor in program.state_dict.values():
        if type(tensor) in (torch.Tensor, torch.nn.Parameter) and tensor.is_cpu:
            storage = tensor.untyped_storage()
            if storage.nbytes() >= LEAST_BYTES:
                found[storage.data_ptr()] = storage
    return found


def _offsets(storages: Iterable[torch.UntypedStorage]) -> Iterator[int]:
    offset = 0
    for storage in storages:
        yield offset
        offset += -(-storage.nbytes() // ALIGNMENT) * ALIGNMENT


def _fill(descriptor: int, storages: list[torch.UntypedStorage]) -> None:
    if not storages:
        return
    size = [*_offsets(storages)][-1] + storages[-1].nbytes()
    os.ftruncate(descriptor, size)
    with mmap.mmap(descriptor, size) as mapped:
        for storage, offset in zip(storages, _offsets(storages), strict=True):
            target = torch.frombuffer(
                mapped, dtype=torch.uint8, count=storage.nbytes(), offset=offset
            )
            target.copy_(torch.empty(0, dtype=torch.uint8).set_(storage))
            del target
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, SEALS)


def _bytes(mapped: mmap.mmap, nbytes: int, offset: int) -> torch.Tensor:
    return torch.frombuffer(mapped, dtype=torch.uint8, count=nbytes, offset=offset)
