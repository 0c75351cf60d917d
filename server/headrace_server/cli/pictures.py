"""Pictures that `--plot` asks for: whether one can be drawn, told before any work is done."""

from __future__ import annotations

from pathlib import Path

from headrace_server.cli.errors import USAGE, CommandError, require_extra

SUFFIXES = (".png", ".svg", ".pdf")


def check_picture(command: str, file: Path) -> None:
    """Check that `command` of headrace can draw into a file of this name.

    Raises:
        CommandError: it ends in no format that can be drawn, or the plot extra is missing.
    """
    if file.suffix.lower() not in SUFFIXES:
        raise CommandError(
            f"expected --plot FILE that ends in {', '.join(SUFFIXES)}, got '{file}'", USAGE
        )
    require_extra("plot", f"headrace {command} --plot", ("matplotlib",))
