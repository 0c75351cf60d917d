"""The command line: `headrace serve`, `check`, `token`, `infer`, `models`, `explain` and `bench`.

Nothing is imported before it is needed: the SDK alone installs this command too, and then it can
still say what is missing.
"""

from __future__ import annotations

import sys

from headrace_server.cli.errors import CommandError, require_extra
from headrace_server.cli.streams import standard_streams


def main() -> None:
    """Run the command in `sys.argv` and exit: 0 fine, 1 failed, 2 usage."""
    try:
        with standard_streams():
            command = sys.argv[1:2]
            extra = "server" if command in (["serve"], ["check"]) else "cli"
            require_extra(extra, " ".join(["headrace", *command]), ("typer", "rich", "msgspec"))
            from headrace_server.cli.commands import app

            app(prog_name="headrace")
    except CommandError as error:
        print(f"headrace: {error}", file=sys.stderr)
        sys.exit(error.status)
