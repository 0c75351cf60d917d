"""The tokens file: which tenants there are, how their tokens are known, and what each may do.

    [tenants.search]
    tokens = ["sha256:4bf5..."]     # lines of `headrace token`; several while one replaces another
    models = ["sentences", "digits-*"]
    requests_per_second = 200       # optional, as is bytes_per_second
    admin = true                    # optional: may also load and unload models
    shared_memory = true            # optional: may share memory with the server
    weight = 2.0                    # optional: its share of a busy model beside others'; 1.0

The file holds hashes. They need no salt and no slow function: a token is 256 random bits, so there
is nothing to guess, and a slow one would be paid for by every request.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import tomllib
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any

import msgspec

TOKEN_PREFIX = "headrace_"
"""Lets scanners that look for leaked secrets recognise one."""

REREAD_S = 1.0
"""How long a change of the file may go unnoticed."""

_HASH = re.compile(r"sha256:([0-9a-f]{64})")

Rate = Annotated[float, msgspec.Meta(gt=0)]
Weight = Annotated[float, msgspec.Meta(ge=0.001, le=1_000)]
"""Far apart enough; what is closer to 0 would hardly be served at all."""

log = logging.getLogger("headrace.transport")


class TokensError(Exception):
    """The tokens file cannot be used; the text is one line and quotes no token or hash."""


class Tenant(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What one tenant may do. `models` are names, or patterns with `*` and `?`; none by default.
    Rates are per second, None means without limit. `weight` is its share of a model's time beside
    those of other tenants, where several of them wait."""

    name: str = ""
    tokens: tuple[str, ...]
    models: tuple[str, ...] = ()
    requests_per_second: Rate | None = None
    bytes_per_second: Rate | None = None
    admin: bool = False
    shared_memory: bool = False
    weight: Weight = 1.0

    @property
    def may_share_memory(self) -> bool:
        """Whether it may have the server read and write memory of its own."""
        return self.shared_memory or self.admin

    def may_use(self, model: str) -> bool:
        """Whether a pattern of `models` matches."""
        return any(fnmatchcase(model, pattern) for pattern in self.models)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    tenants: dict[str, Any]


def new_token() -> str:
    """A token that nobody has seen: 256 random bits."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_of(token: str) -> str:
    """How the tokens file writes a token."""
    return f"sha256:{hashlib.sha256(token.encode()).hexdigest()}"


class Tenants:
    """Finds the tenant of a token, in a time that says nothing about the tokens there are.

    Hashes are looked up under a key that is drawn anew by each process: how long a look-up takes
    depends on values that no caller can know or choose.
    """

    def __init__(self, tenants: Mapping[str, Tenant]) -> None:
        self._key = secrets.token_bytes(32)
        self._by_digest: dict[bytes, tuple[bytes, Tenant]] = {}
        for tenant in tenants.values():
            for line in tenant.tokens:
                digest = bytes.fromhex(line.removeprefix("sha256:"))
                self._by_digest[self._keyed(digest)] = (digest, tenant)

    def find(self, digest: bytes) -> Tenant | None:
        """The tenant of the token with this SHA-256 digest."""
        digest_known, tenant = self._by_digest.get(self._keyed(digest), (bytes(32), None))
        return tenant if hmac.compare_digest(digest, digest_known) else None

    def _keyed(self, digest: bytes) -> bytes:
        return hmac.digest(self._key, digest, "sha256")


def parse_tenants(text: str, origin: str) -> dict[str, Tenant]:
    """The tenants of a tokens file, by name.

    Raises:
        TokensError: it is no TOML, has an unknown key, or a token that is no hash.
    """
    try:
        content = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TokensError(f"{origin} is not valid TOML: {error}") from None
    try:
        file = msgspec.convert(content, _File)
    except msgspec.ValidationError as error:
        raise TokensError(f"{origin}: {error}") from None
    owners: dict[str, str] = {}
    tenants: dict[str, Tenant] = {}
    for name, entries in file.tenants.items():
        try:
            tenant = msgspec.convert(entries, Tenant)
        except msgspec.ValidationError as error:
            raise TokensError(f"{origin}: tenant '{name}': {error}") from None
        tenants[name] = msgspec.structs.replace(tenant, name=name)
        for number, line in enumerate(tenant.tokens, 1):
            if not _HASH.fullmatch(line):
                # Not quoted: it may well be the token itself.
                raise TokensError(
                    f"{origin}: token {number} of tenant '{name}': expected a line of "
                    "'headrace token', sha256: and 64 hexadecimal digits"
                )
            if owners.setdefault(line, name) != name:
                raise TokensError(
                    f"{origin}: tenants '{owners[line]}' and '{name}' have the same token"
                )
    return tenants


class TokensFile:
    """The tenants of a file, which is looked at again at most every `REREAD_S` seconds.

    A file that cannot be used any more leaves what it said before in force.

    Raises:
        TokensError: from the start it cannot be used.
    """

    def __init__(self, path: Path, now: Callable[[], float]) -> None:
        self._path = path
        self._now = now
        self._text = self._read()
        self._tenants = Tenants(parse_tenants(self._text, str(path)))
        self._looked_s = now()

    def tenants(self) -> Tenants:
        """What the file says now."""
        now = self._now()
        if now - self._looked_s >= REREAD_S:
            self._looked_s = now
            self._look_again()
        return self._tenants

    def _look_again(self) -> None:
        try:
            text = self._read()
            if text != self._text:
                self._text = text
                self._tenants = Tenants(parse_tenants(text, str(self._path)))
                log.info("new tokens from %s", self._path)
        except TokensError as error:
            log.warning("the tokens before stay in force: %s", error)

    def _read(self) -> str:
        try:
            return self._path.read_text(encoding="utf-8")
        except OSError as error:
            raise TokensError(f"cannot read {self._path}: {error.strerror}") from None
        except UnicodeDecodeError:
            raise TokensError(f"{self._path} is not valid TOML: it is no UTF-8") from None
