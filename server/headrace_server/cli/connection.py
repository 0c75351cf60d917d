"""A client for one command: what goes wrong with a call ends the command with one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from headrace import Client, RetryPolicy
from headrace.errors import HeadraceError, InvalidInput, Unavailable, Unimplemented
from headrace_server.cli.errors import FAILED, USAGE, CommandError

ONCE = RetryPolicy(max_attempts=1)
"""Whoever typed the command sees what happened, and decides whether to try again."""


@contextmanager
def connected(address: str, timeout_s: float) -> Iterator[Client]:
    """A client of the server at `address` (host:port) until the block ends; each call may
    take `timeout_s`.

    Raises:
        CommandError: a call in the block failed.
    """
    try:
        with Client(address, timeout=timeout_s, retry=ONCE) as client:
            yield client
    except HeadraceError as error:
        raise _command_error(address, error) from None


def _command_error(address: str, error: HeadraceError) -> CommandError:
    if isinstance(error, InvalidInput):
        return CommandError(str(error), USAGE)
    text = " ".join(str(error).split())
    if isinstance(error, Unavailable) and error.reason is None:
        text = f"no server answers at {address}: {text}"
    if isinstance(error, Unimplemented) and error.reason is None:
        text = f"the server at {address} does not offer this: {text}"
    return CommandError(text, FAILED)
