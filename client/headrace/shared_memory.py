"""Memory that a client shares with a server on its own machine, and arrays that lie in it.

No input or output but that on the memory itself: the clients register it with the server.
"""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.errors import InvalidInput
from headrace.protocol import grpc_service_pb2 as pb
from headrace.tensors import DATATYPES, Array

__all__ = ["SharedMemory", "place_of", "set_place"]

_DIRECTORY = "/dev/shm"
_ALIGNMENT = 64

Parameters = Mapping[str, pb.InferParameter]


class SharedMemory:
    """A piece of memory that a server on this machine reads inputs from, and writes outputs to.

    Made by `shared_memory` of a client, and used with that client until the `with` block ends. Not
    safe to allocate from in several threads at once.

    It has a name in the file system only until the server has opened it; from then on nothing
    stays behind, whatever ends this process. One that is killed (SIGKILL) before that leaves a file
    of this size in `/dev/shm`, `headrace-` and its process id. Only the user who made it may open
    it: the server runs as the same one, or as root.

    Args:
        nbytes: its size; all of it is taken from the machine's memory at once.

    Raises:
        InvalidInput: this is no size, or this system has no such memory, or not so much.

    Example:
        >>> with client.shared_memory(1 << 20) as memory:
        ...     image = memory.empty((1, 3, 224, 224), np.float32)
        ...     image[:] = 0.5
        ...     result = client.infer("resnet", {"image": image})
    """

    def __init__(self, nbytes: int) -> None:
        try:
            self.nbytes = index(nbytes)
        except TypeError:
            raise InvalidInput(f"expected a whole number of bytes, got {nbytes!r}") from None
        if self.nbytes < 1:
            raise InvalidInput(f"expected at least 1 byte of shared memory, got {nbytes}")
        if not os.path.isdir(_DIRECTORY):
            raise InvalidInput(f"shared memory needs {_DIRECTORY}, which this system lacks")
        self.name = f"headrace-{os.getpid()}-{secrets.token_hex(8)}"
        self._path = os.path.join(_DIRECTORY, self.name)
        self._used = 0
        try:
            self._map: mmap.mmap | None = _mapped(self._path, self.nbytes)
            self._begin = np.frombuffer(self._map, np.uint8).__array_interface__["data"][0]
        except (OSError, OverflowError) as error:
            self.unlink()
            reason = getattr(error, "strerror", None) or error
            raise InvalidInput(
                f"expected room for {nbytes} bytes in {_DIRECTORY}: {reason}"
            ) from None
        except BaseException:  # Ctrl-C: much memory takes long
            self.unlink()
            raise

    def empty(self, shape: int | Sequence[int], dtype: npt.DTypeLike = np.float32) -> Array:
        """An array of its own in this memory, with anything in it, as from `numpy.empty`.

        Give it to `infer` as an input, or in `into`, and its contents are not sent.

        The elements of a BYTES tensor lie elsewhere: for an output of that datatype take bytes
        (`np.uint8`), as many as the answer may have on the wire.

        Raises:
            InvalidInput: there is no such array, so much is not left, or the `with` block has
                ended.
        """
        if self._map is None:
            raise InvalidInput("expected an array before the end of its memory's with block")
        try:
            array = np.broadcast_to(np.empty((), dtype), shape)  # one element, whatever the shape
        except (TypeError, ValueError) as error:
            raise InvalidInput(
                f"expected a shape and a dtype that numpy has, got {shape!r} and {dtype!r}: {error}"
            ) from None
        if array.dtype.hasobject:  # pointers, which are not the server's to write
            raise InvalidInput(
                "expected a dtype whose elements hold their bytes, such as np.uint8 for BYTES, "
                f"got {array.dtype}"
            )
        begin = -(-self._used // _ALIGNMENT) * _ALIGNMENT
        if begin + array.nbytes > self.nbytes:
            raise InvalidInput(
                f"expected at most {max(0, self.nbytes - begin)} bytes, which are left of "
                f"{self.nbytes}, got an array of {array.nbytes}"
            )
        self._used = begin + array.nbytes
        return np.ndarray(array.shape, array.dtype, self._map, begin)

    def offset_of(self, array: Array) -> int | None:
        """Where the array begins in this memory; None if it lies elsewhere or in pieces."""
        offset = int(array.__array_interface__["data"][0]) - self._begin
        inside = offset >= 0 and offset + array.nbytes <= self.nbytes
        return offset if inside and array.flags.c_contiguous else None

    def registration(self) -> pb.SystemSharedMemoryRegisterRequest:
        """What the server is told; it must be done before `unlink`."""
        return pb.SystemSharedMemoryRegisterRequest(
            name=self.name, key="/" + self.name, byte_size=self.nbytes
        )

    def unlink(self) -> None:
        """Take the name away. Whoever has opened the memory keeps it."""
        with suppress(FileNotFoundError):
            os.unlink(self._path)

    def close(self) -> None:
        """Make no more arrays. The memory goes with the last one: numpy does not keep a map from
        being closed under its arrays, so it never is, only let go."""
        self._map = None


def place_of(
    memories: Iterable[SharedMemory], array: Array, datatype: str
) -> tuple[SharedMemory, int] | None:
    """The memory in which an array lies as it would be sent, and its offset there."""
    # Of BYTES and of other byte orders the bytes in memory are not those on the wire.
    if array.dtype.itemsize != DATATYPES[datatype].itemsize or array.dtype.str.startswith(">"):
        return None
    for memory in memories:
        offset = memory.offset_of(array)
        if offset is not None:
            return memory, offset
    return None


def set_place(parameters: Any, place: tuple[SharedMemory, int], nbytes: int) -> None:
    """Name the place in the parameters of an input or an output."""
    memory, offset = place
    parameters["shared_memory_region"].string_param = memory.name
    parameters["shared_memory_byte_size"].int64_param = nbytes
    if offset:
        parameters["shared_memory_offset"].int64_param = offset


def _mapped(path: str, nbytes: int) -> mmap.mmap:
    import fcntl  # where there is a /dev/shm, there is this

    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        # Once this process is gone, so is the lock: it tells the server that nobody asks any more.
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        # Now rather than at a first touch, which would end the process if there is no room.
        os.posix_fallocate(descriptor, 0, nbytes)
        return mmap.mmap(descriptor, nbytes)  # keeps a descriptor of its own, and the lock
    finally:
        os.close(descriptor)
