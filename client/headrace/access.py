"""How a client gets in: TLS, its own certificate, its token."""

from __future__ import annotations

import os
import re
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import grpc

from headrace.channels import ChannelOptions, channel_options
from headrace.errors import InvalidInput

__all__ = ["OPEN_ACCESS", "Access", "Tls", "access_of", "metadata_of"]

_File: TypeAlias = str | os.PathLike[str]
_Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]

_KEY = re.compile(r"[a-z0-9_.-]+")
_URL = re.compile(r"(https?|wss?|grpcs?|grpc\+tls|tcp)://", re.IGNORECASE)
_PORTLESS = re.compile(r"[^:/]*|\[[^\]]*\]")
_IPV6 = re.compile(r"(?:[0-9a-fA-F]*:){2,}[0-9a-fA-F.]*")
_PORT = re.compile(r"(?:dns:(?:///?)?)?[^:/]*:(\d+)|\[[^\]]*\]:(\d+)")
_PRINTABLE = re.compile(r"[ -~]*")


@dataclass(frozen=True, slots=True)
class Tls:
    """PEM files that secure a connection; read when the client is made.

    Args:
        ca: authorities that the server's certificate is checked against; None takes those that
            gRPC brings along, which sign the public web.
        cert: the client's own certificate chain, where the server asks for one.
        key: its private key, without a password.
    """

    ca: _File | None = None
    cert: _File | None = None
    key: _File | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """For a secure channel.

        Raises:
            InvalidInput: a file cannot be read or is not what it should be.
        """
        if (self.cert is None) != (self.key is None):
            raise InvalidInput("expected a certificate and its key together, got one of them")
        # gRPC takes anything and fails each connection, with a text that names no file.
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        if self.ca is not None:
            _check(self.ca, "certificates", lambda: context.load_verify_locations(self.ca))
        if self.cert is not None and self.key is not None:
            cert, key = self.cert, self.key
            _check(
                cert,
                f"a certificate and its key in {key},",
                lambda: context.load_cert_chain(cert, key, password=lambda: ""),
            )
        return grpc.ssl_channel_credentials(
            root_certificates=_read(self.ca),
            private_key=_read(self.key),
            certificate_chain=_read(self.cert),
        )


@dataclass(frozen=True, slots=True)
class Access:
    """What opens a channel to a server; the token does not show in its repr."""

    tls: Tls | None = None
    token: str = field(default="", repr=False)
    other: grpc.ChannelCredentials | None = field(default=None, repr=False)

    @property
    def metadata(self) -> _Metadata:
        """What every call brings."""
        return (("authorization", f"Bearer {self.token}"),) if self.token else ()

    def channel(self, target: str, options: ChannelOptions = ()) -> grpc.Channel:
        """A channel for threads.

        Raises:
            InvalidInput: files make no TLS, or the target is no address.
        """
        credentials, chosen = self._credentials(), channel_options(options)
        _check_target(target, secure=credentials is not None)
        if credentials is None:
            return grpc.insecure_channel(target, chosen)
        return grpc.secure_channel(target, credentials, chosen)

    def aio_channel(self, target: str, options: ChannelOptions = ()) -> grpc.aio.Channel:
        """The same for asyncio."""
        credentials, chosen = self._credentials(), channel_options(options)
        _check_target(target, secure=credentials is not None)
        if credentials is None:
            return grpc.aio.insecure_channel(target, chosen)
        return grpc.aio.secure_channel(target, credentials, chosen)

    def _credentials(self) -> grpc.ChannelCredentials | None:
        return self.other if self.tls is None else self.tls.credentials()


OPEN_ACCESS = Access()
"""Plain text, and nobody in particular."""


def access_of(
    tls: bool | Tls, token: str, credentials: grpc.ChannelCredentials | None = None
) -> Access:
    """What the arguments of a client's constructor come to.

    Raises:
        InvalidInput: they contradict each other, or the token cannot travel in metadata.
    """
    if tls and credentials is not None:
        raise InvalidInput("expected tls or credentials, got both")
    if not token.isascii() or any(c.isspace() or not c.isprintable() for c in token):
        raise InvalidInput("expected a token of printable ASCII characters without spaces")
    chosen = tls if isinstance(tls, Tls) else Tls() if tls else None
    return Access(chosen, token, credentials)


def metadata_of(metadata: Mapping[str, str | bytes]) -> _Metadata:
    """The pairs of a client's metadata, checked as gRPC would check them at each call.

    Raises:
        InvalidInput: one of them cannot travel; its value, which may be a secret, is not told.
    """
    for key, value in metadata.items():
        if not _KEY.fullmatch(key):
            raise InvalidInput(
                "expected metadata with keys of lower-case letters, digits, '-', '_' and '.', "
                f"got {key!r}"
            )
        if key.endswith("-bin"):
            if not isinstance(value, bytes):
                raise InvalidInput(f"metadata '{key}': expected bytes, got {type(value).__name__}")
            continue
        if not isinstance(value, str | bytes):
            raise InvalidInput(
                f"metadata '{key}': expected str or bytes, got {type(value).__name__}"
            )
        text = value if isinstance(value, str) else value.decode("latin-1")
        if not _PRINTABLE.fullmatch(text):
            raise InvalidInput(
                f"metadata '{key}': expected printable ASCII characters, got others, "
                "which need bytes and a key that ends in '-bin'"
            )
    return tuple(metadata.items())


def _check_target(target: str, *, secure: bool) -> None:
    if not isinstance(target, str):
        raise InvalidInput(f"target: expected an address such as 'localhost:8001', got {target!r}")
    if _URL.match(target):
        raise InvalidInput(
            f"target: expected an address such as 'localhost:8001', without a scheme, got "
            f"{target!r}"
        )
    # gRPC would take the port of HTTPS, where no plain text is spoken.
    if not secure and _PORTLESS.fullmatch(target):
        raise InvalidInput(
            f"target: expected an address with a port, such as 'localhost:8001', got {target!r}"
        )
    # gRPC would take the port of HTTPS here, too, and of 70000 what is left in 16 bits.
    if _IPV6.fullmatch(target):
        raise InvalidInput(
            f"target: expected an address such as '[::1]:8001', IPv6 in brackets, got {target!r}"
        )
    port = _PORT.fullmatch(target)
    if port is not None and not 0 < int((port[1] or port[2])[:9]) < 1 << 16:
        raise InvalidInput(f"target: expected a port from 1 to 65535, got {target!r}")
    try:
        target.encode()
    except UnicodeEncodeError as error:
        raise InvalidInput(f"target: expected text that UTF-8 can express: {error}") from None


def _check(file: _File, what: str, load: Callable[[], None]) -> None:
    try:
        load()
    except (ssl.SSLError, ValueError) as error:
        reason = (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
        raise InvalidInput(f"expected {what} in PEM in {os.fspath(file)}: {reason}") from None
    except OSError as error:
        raise InvalidInput(f"cannot read {os.fspath(file)}: {error.strerror}") from None


def _read(file: _File | None) -> bytes | None:
    try:
        return None if file is None else Path(file).read_bytes()
    except OSError as error:
        raise InvalidInput(f"cannot read {file}: {error.strerror}") from None
