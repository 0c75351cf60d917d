"""How a command fails: one line for people and an exit status, never a traceback."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.util import find_spec

FAILED = 1
USAGE = 2

SERVING_MODULES = ("torch", "prometheus_client", "grpc_health", "grpc_reflection")
"""What loading and serving models needs on top of the command line itself."""


class CommandError(Exception):
    """Ends the command with its text on standard error and `status` as exit status."""

    def __init__(self, text: str, status: int = FAILED) -> None:
        super().__init__(text)
        self.status = status


def require_server_extra(command: str, modules: Sequence[str] = SERVING_MODULES) -> None:
    """Check, without importing them, that modules of the server extra are installed.

    Raises:
        CommandError: the first one that is missing, and what to install.
    """
    require_extra("server", f"headrace {command}", modules)


def require_extra(extra: str, command: str, modules: Sequence[str]) -> None:
    """Check, without importing them, that the modules which `command` takes from an extra are
    installed.

    Raises:
        CommandError: the first one that is missing, and what to install.
    """
    for module in modules:
        if find_spec(module) is None:
            raise CommandError(
                f"{command} needs the {extra} extra (there is no module '{module}'): "
                f"pip install 'headrace[{extra}]'"
            )
