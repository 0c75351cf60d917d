"""The standard streams of a command: all of them there, and what is printed written or missed."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from headrace_server.cli.errors import FAILED, CommandError

_UNWRITTEN = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EPIPE)
"""Where no file is named either, it was one that was open from the beginning."""


@contextmanager
def standard_streams() -> Iterator[None]:
    """In the block a stream that the shell closed is `/dev/null`, and by its end everything that
    was printed has been written.

    Raises:
        CommandError: standard output took not all of it.
        SystemExit: whoever read standard output reads no more, which needs no words.
    """
    _open_missing()
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OSError as error:
        if error.errno not in _UNWRITTEN or error.filename is not None:
            raise
        # Python flushes once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if error.errno == errno.EPIPE:
            sys.exit(FAILED)
        raise CommandError(f"cannot write to standard output: {error.strerror}") from None


def _open_missing() -> None:
    # Whatever is opened next would take the place of a standard stream, here and in processes that
    # are started: a socket, say.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)
