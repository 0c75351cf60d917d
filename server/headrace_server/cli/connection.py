"""A client for one command: what goes wrong with a call ends the command with one line."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from headrace import Client, RetryPolicy
from headrace.access import Access, Tls
from headrace.errors import HeadraceError, InvalidInput, Unavailable, Unimplemented
from headrace_server.cli.errors import FAILED, USAGE, CommandError

ONCE = RetryPolicy(max_attempts=1)
"""Whoever typed the command sees what happened, and decides whether to try again."""

_HUNG_UP = re.compile(r"failed to connect.*(Socket closed|reset by peer|Broken pipe)")
"""How gRPC says that somebody listens there, and hung up before they agreed on HTTP/2. Which of
the three comes hangs on whether the client had still been writing."""


@contextmanager
def connected(address: str, timeout_s: float, access: Access) -> Iterator[Client]:
    """A client of the server at `address` (host:port) until the block ends; each call may
    take `timeout_s`.

    Raises:
        CommandError: a call in the block failed.
    """
    try:
        with Client(
            address,
            timeout=timeout_s,
            retry=ONCE,
            tls=access.tls or False,
            token=access.token,
        ) as client:
            yield client
    except HeadraceError as error:
        raise _command_error(address, error, secured=access.tls is not None) from None


def access_from(
    *, tls: bool, ca: Path | None, cert: Path | None, key: Path | None, token_file: Path | None
) -> Access:
    """What the flags of a command come to; any of the PEM files asks for TLS.

    Raises:
        CommandError: the token file cannot be read, or holds no token.
    """
    token = ""
    if token_file is not None:
        try:
            token = token_file.read_text(encoding="utf-8").strip()
        except OSError as error:
            raise CommandError(f"cannot read {token_file}: {error.strerror}", USAGE) from None
        except UnicodeDecodeError:
            token = ""
        if len(token.split()) != 1:
            raise CommandError(
                f"expected one token in {token_file}, as 'headrace token' prints it", USAGE
            )
    secured = tls or ca is not None or cert is not None or key is not None
    return Access(Tls(ca, cert, key) if secured else None, token)


def _command_error(address: str, error: HeadraceError, *, secured: bool) -> CommandError:
    if isinstance(error, InvalidInput):
        return CommandError(str(error), USAGE)
    text = " ".join(str(error).split())
    if isinstance(error, Unavailable) and error.reason is None:
        text = f"no server answers at {address}: {text}"
        if _HUNG_UP.search(text):
            wanted = "a certificate of yours (--tls-cert, --tls-key)" if secured else "TLS (--tls)"
            text += f"; does it ask for {wanted}?"
    if isinstance(error, Unimplemented) and error.reason is None:
        text = f"the server at {address} does not offer this: {text}"
    return CommandError(text, FAILED)
