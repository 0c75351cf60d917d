"""Memory that clients share with the server: named by them, read and written by descriptor.

Nothing here is ever mapped. Whoever shares a file can cut it short at any moment, and touching a
page that is gone ends the process (SIGBUS), however recently somebody looked; reading one comes
back short, and that is an error like any other. It costs nothing either: what is read goes straight
to where a batch is gathered, what is written comes straight from where its answer lies.
"""

from __future__ import annotations

import fcntl
import os
import stat
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field

DIRECTORY = "/dev/shm"
"""Where Linux keeps the objects of `shm_open`."""

MAX_KEY_CHARACTERS = 255
"""Of a file's name on Linux, and more than `shm_open` takes elsewhere."""


class RegionError(Exception):
    """A region that cannot be used as asked; the text is for the client that named it."""


class Region:
    """A piece of one shared memory object, open as long as anything refers to this.

    Args:
        name: what its client calls it.
        key: what `shm_open` calls the object, with or without the slash in front.
        offset: where the region begins in the object.
        nbytes: its size.

    Raises:
        RegionError: the key is no name in `DIRECTORY`, there is no such object, it may not be read
            and written, or it is smaller than that.
    """

    def __init__(self, name: str, key: str, offset: int, nbytes: int) -> None:
        self.name = name
        self.key = key
        self.offset = offset
        self.nbytes = nbytes
        self._descriptor = descriptor = _opened(key)
        # Requests in flight may outlive the registration; the last one closes the door.
        weakref.finalize(self, os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise RegionError(f"expected shared memory at '{key}', got another kind of file")
        if offset + nbytes > status.st_size:
            raise RegionError(
                f"invalid args: expected at least {offset + nbytes} bytes at '{key}', got "
                f"{status.st_size}"
            )
        self.file = (status.st_dev, status.st_ino)
        """Which object this is, whatever it is called."""
        self._was_held = not self._lockable()

    def span(self, offset: int, nbytes: int) -> Span:
        """A part of the region. Raises `RegionError` when it reaches beyond the region."""
        if offset > self.nbytes or (offset == self.nbytes and nbytes):
            raise RegionError(f"Invalid offset for shared memory region: '{self.name}'")
        if offset + nbytes > self.nbytes:
            raise RegionError(
                f"Invalid offset + byte size for shared memory region: '{self.name}'. "
                f"Expected at most {self.nbytes}, got {offset + nbytes}"
            )
        return Span(self, self.offset + offset, nbytes)

    @property
    def abandoned(self) -> bool:
        """Whether its client locked the object (`flock`, as our SDK does) and is gone: nobody can
        ask for it any more. Never true of clients that lock nothing."""
        return self._was_held and self._lockable()

    def read_into(self, memory: memoryview, offset: int) -> int:
        """Fill memory from the object, from `offset` of it on; returns how many bytes it had.
        Raises `RegionError`."""
        done = 0
        try:
            while done < len(memory):
                count = os.preadv(self._descriptor, [memory[done:]], offset + done)
                if not count:
                    break
                done += count
        except OSError as error:
            raise RegionError(
                f"shared memory region '{self.name}' cannot be read: {error.strerror}"
            ) from None
        return done

    def write(self, data: memoryview, offset: int) -> None:
        """Write into the object at `offset`. Raises `RegionError`."""
        try:
            # Written beyond its end it would grow: its client's memory, but nobody asked for it.
            size = os.fstat(self._descriptor).st_size
            if offset + len(data) > size:
                raise RegionError(self.shrunk(offset + len(data), size))
            done = 0
            while done < len(data):
                done += os.pwrite(self._descriptor, data[done:], offset + done)
        except OSError as error:
            raise RegionError(
                f"shared memory region '{self.name}' cannot be written: {error.strerror}"
            ) from None

    def shrunk(self, expected: int, got: int) -> str:
        """What a client is told that has cut the object short."""
        return (
            f"shared memory region '{self.name}' has shrunk since it was registered: expected at "
            f"least {expected} bytes at '{self.key}', got {got}"
        )

    def _lockable(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True


class Span:
    """Part of a region that holds one tensor. It has a length, as bytes do.

    `problem` says what was wrong when it was last read; a reader that gathers many requests cannot
    stop for one of them.
    """

    __slots__ = ("begin", "nbytes", "problem", "region")

    def __init__(self, region: Region, begin: int, nbytes: int) -> None:
        self.region = region
        self.begin = begin
        self.nbytes = nbytes
        self.problem: str | None = None

    def __len__(self) -> int:
        return self.nbytes

    def read_into(self, memory: memoryview) -> None:
        """Fill memory of this length; with zeros where the region ends too early."""
        self.problem = None
        try:
            count = self.region.read_into(memory, self.begin)
        except RegionError as error:
            count, self.problem = 0, str(error)
        else:
            if count < len(memory):
                self.problem = self.region.shrunk(self.begin + len(memory), self.begin + count)
        memory[count:] = bytes(len(memory) - count)

    def contents(self) -> memoryview:
        """A copy, with zeros where the region ends too early."""
        copied = memoryview(bytearray(self.nbytes))
        self.read_into(copied)
        return copied

    def overlaps(self, other: Span) -> bool:
        """Whether some byte belongs to both, whatever regions they came by."""
        return self.region.file == other.region.file and max(self.begin, other.begin) < min(
            self.begin + self.nbytes, other.begin + other.nbytes
        )


@dataclass(frozen=True, slots=True)
class RequestSpans:
    """The parts of regions that one request uses.

    Args:
        inputs: those that its inputs are read from when its batch is gathered.
        outputs: where answers are written to, by position in the model's outputs.
    """

    inputs: tuple[Span, ...] = ()
    outputs: Mapping[int, Span] = field(default_factory=dict)

    @property
    def problem(self) -> str | None:
        """What was wrong with the inputs when they were read; None if nothing was."""
        return next((span.problem for span in self.inputs if span.problem is not None), None)


def _opened(key: str) -> int:
    name = key.removeprefix("/")
    if (
        not name
        or len(name) > MAX_KEY_CHARACTERS
        or "/" in name
        or "\0" in name
        or name in (".", "..")
    ):
        raise RegionError(
            f"expected a key of 1 to {MAX_KEY_CHARACTERS} characters without slashes inside, "
            f"got '{key}'"
        )
    try:
        # A link could lead anywhere, and opening a pipe would wait for its other end.
        return os.open(
            os.path.join(DIRECTORY, name),
            os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY,
        )
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or "no name of a file"
        raise RegionError(f"Unable to open shared memory region: '{key}' ({why.lower()})") from None
