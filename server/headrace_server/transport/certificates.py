"""The server's certificate, its key and the clients' authority: read, checked, and read again.

Renewed files count from the next connection on; nothing is restarted and nothing watches them.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc

log = logging.getLogger("headrace.transport")


class CertificateError(Exception):
    """The files make no TLS; the text is one line for the operator and holds nothing of them."""


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """PEM files: the chain, its private key, and who signs the certificates that clients must
    show; without `client_ca` clients show none."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, slots=True)
class _Contents:
    cert: bytes
    key: bytes
    client_ca: bytes | None

    def __repr__(self) -> str:
        return "_Contents(...)"  # a key must not reach a log


class Certificates:
    """What new connections are secured with. Safe to ask from any thread.

    Files are read for every connection: some 50 microseconds beside a handshake's milliseconds,
    and it sees every way of replacing a file, that of a mounted secret's links too. Files that do
    not fit together, as while they are being replaced, leave what was there in force.

    Raises:
        CertificateError: from the start they cannot be read or do not fit together.
    """

    def __init__(self, files: CertificateFiles) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._contents = self._read()
        self._context = self._checked()

    def credentials(self) -> grpc.ServerCredentials:
        """For `grpc.aio.Server.add_secure_port`."""
        given = self._contents

        def changed() -> grpc.ServerCertificateConfiguration | None:
            nonlocal given
            current = self._current()[0]
            if current is given:
                return None
            given = current
            return _configuration(current)

        return grpc.dynamic_ssl_server_credentials(
            _configuration(given),
            changed,  # type: ignore[arg-type]  # None means as before, says grpc's documentation
            require_client_authentication=self._files.client_ca is not None,
        )

    def context(self) -> ssl.SSLContext:
        """For a connection that Python's own ssl module secures."""
        return self._current()[1]

    def _current(self) -> tuple[_Contents, ssl.SSLContext]:
        with self._lock:
            try:
                found = self._read()
                if found != self._seen:
                    self._seen = found
                    context = self._checked()
                    if self._read() == found:  # else the check saw other files than we did
                        self._contents, self._context = found, context
                        log.info("new TLS certificate from %s", self._files.cert)
                    else:
                        self._seen = self._contents
            except CertificateError as error:
                log.warning("the TLS certificate before stays in force: %s", error)
            return self._contents, self._context

    def _read(self) -> _Contents:
        files = self._files
        return _Contents(
            _bytes_of(files.cert),
            _bytes_of(files.key),
            None if files.client_ca is None else _bytes_of(files.client_ca),
        )

    def _checked(self) -> ssl.SSLContext:
        files = self._files
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        try:
            # The empty password keeps an encrypted key from asking the terminal for one.
            context.load_cert_chain(files.cert, files.key, password=lambda: "")
        except (ssl.SSLError, ValueError, OSError) as error:
            raise CertificateError(
                f"expected a PEM certificate in {files.cert} and its key, without a password, in "
                f"{files.key}: {_reason(error)}"
            ) from None
        if files.client_ca is not None:
            try:
                context.load_verify_locations(files.client_ca)
            except (ssl.SSLError, OSError) as error:
                raise CertificateError(
                    f"expected PEM certificates of authorities in {files.client_ca}: "
                    f"{_reason(error)}"
                ) from None
            context.verify_mode = ssl.CERT_REQUIRED
        return context


def _configuration(contents: _Contents) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration(
        [(contents.key, contents.cert)], root_certificates=contents.client_ca
    )


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {file}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
