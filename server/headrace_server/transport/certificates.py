"""The server's certificate, its key and the clients' authority: read, checked, and read again.

Renewed files count from the next connection on; nothing is restarted and nothing watches them.
"""

from __future__ import annotations

import logging
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

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
        self._contexts = self._checked()

    def context(self) -> ssl.SSLContext:
        """For the next connection that speaks HTTP/1.1."""
        return self._current()[0]

    def http2_context(self) -> ssl.SSLContext:
        """For the next connection that speaks HTTP/2."""
        return self._current()[1]

    def _current(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        with self._lock:
            try:
                found = self._read()
                if found != self._seen:
                    self._seen = found
                    contexts = self._checked()
                    if self._read() == found:  # else the check saw other files than we did
                        self._contents, self._contexts = found, contexts
                        log.info("new TLS certificate from %s", self._files.cert)
                    else:
                        self._seen = self._contents
            except CertificateError as error:
                log.warning("the TLS certificate before stays in force: %s", error)
            return self._contexts

    def _read(self) -> _Contents:
        files = self._files
        return _Contents(
            _bytes_of(files.cert),
            _bytes_of(files.key),
            None if files.client_ca is None else _bytes_of(files.client_ca),
        )

    def _checked(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        http1, http2 = self._context(), self._context()
        http2.set_alpn_protocols(["h2"])
        return http1, http2

    def _context(self) -> ssl.SSLContext:
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


def certificates_of(cert: str, key: str, client_ca: str) -> Certificates | None:
    """Those of a server's settings, where an empty path is no file; None where there are none.

    Raises:
        CertificateError: see `Certificates`.
    """
    if not cert:
        return None
    ca = Path(client_ca) if client_ca else None
    return Certificates(CertificateFiles(Path(cert), Path(key), ca))


def _bytes_of(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise CertificateError(f"cannot read {file}: {error.strerror}") from None


def _reason(error: Exception) -> str:
    return (getattr(error, "reason", None) or str(error)).lower().replace("_", " ")
