"""Build the example repository: one network trained on the spot, one with published weights.

    python -m examples.build REPOSITORY
    headrace serve REPOSITORY

What is already there is left alone, unless `--force` is given.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from examples.digits import train
from examples.sentences import build as sentences
from rich.console import Console


def build(repository: Path, console: Console, *, force: bool = False) -> None:
    """Write `digits` and `sentences` into `repository`, each as version 1.

    Raises FileNotFoundError if the weights of the sentence encoder are not installed.
    """
    digits_directory = repository / "digits" / "1"
    if force or not (digits_directory / "model.pt2").exists():
        train.build(digits_directory, console)
        console.print("digits: built")
    else:
        console.print("digits: already built")

    sentences_directory = repository / "sentences" / "1"
    if force or not sentences.is_built(sentences_directory):
        sentences.build(sentences_directory)
        console.print("sentences: built")
    else:
        console.print("sentences: already built")


def main() -> int:
    parser = argparse.ArgumentParser(description="Build the example models into a repository.")
    parser.add_argument("repository", type=Path, help="folder to write into, made if missing")
    parser.add_argument("--force", action="store_true", help="build again what is already there")
    arguments = parser.parse_args()
    try:
        build(arguments.repository, Console(), force=arguments.force)
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
