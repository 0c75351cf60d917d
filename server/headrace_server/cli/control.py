"""`headrace load` and `headrace unload`: change which models a running server serves."""

from __future__ import annotations

from pathlib import Path

from headrace.access import Access
from headrace_server.cli.connection import connected
from headrace_server.cli.errors import USAGE, CommandError


def load(model: str, config: Path | None, *, address: str, access: Access, timeout: float) -> None:
    """Load a model, again if it is served; `timeout` is in seconds.

    Raises:
        CommandError: the file cannot be read, or the server refuses.
    """
    text = None if config is None else _read(config)
    with connected(address, timeout, access) as client:
        client.load_model(model, config=text)


def unload(model: str, *, address: str, access: Access, timeout: float) -> None:
    """Unload a model; `timeout` is in seconds. Raises `CommandError` if the server refuses."""
    with connected(address, timeout, access) as client:
        client.unload_model(model)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise CommandError(f"cannot read {file}: {error.strerror}", USAGE) from None
    except UnicodeDecodeError:
        raise CommandError(f"expected JSON in {file}, found no UTF-8 text", USAGE) from None
