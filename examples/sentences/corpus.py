"""Real sentences for the encoder, with no download: what the standard library says of itself.

Docstrings are read from source with `ast`, so no module is imported for its text. The sentences
are the same in every run of one Python version, and differ a little between versions.
"""

from __future__ import annotations

import ast
import importlib.util
import random
import re
from collections.abc import Iterator
from pathlib import Path

# Modules that are one source file in every supported Python, chosen for a variety of subjects.
MODULES = (
    "argparse", "asyncio.base_events", "calendar", "configparser", "contextlib", "difflib",
    "email.message", "fractions", "ftplib", "heapq", "http.client", "http.cookiejar",
    "http.server", "imaplib", "ipaddress", "mailbox", "pdb", "queue", "random", "shutil",
    "smtplib", "socketserver", "ssl", "statistics", "subprocess", "tarfile", "textwrap",
    "threading", "urllib.request", "xml.etree.ElementTree",
)  # fmt: skip
MIN_CHARACTERS = 8
MAX_CHARACTERS = 900

_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


def sentences(limit: int | None = None, *, seed: int = 0) -> list[str]:
    """Return distinct sentences in a shuffled order that `seed` decides, `limit` at most.

    There are about 3,800, of 8 to 900 characters each; half are shorter than 60.
    """
    distinct = sorted({sentence for module in MODULES for sentence in _in_module(module)})
    random.Random(seed).shuffle(distinct)
    return distinct[:limit]


def _in_module(name: str) -> Iterator[str]:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"expected the source of standard module '{name}', found none")
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _in_docstring(ast.get_docstring(node) or "")


def _in_docstring(text: str) -> Iterator[str]:
    for paragraph in _PARAGRAPH_BREAK.split(text):
        if ">>>" in paragraph:  # an interactive example is no sentence
            continue
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            if MIN_CHARACTERS <= len(sentence) <= MAX_CHARACTERS:
                yield sentence
