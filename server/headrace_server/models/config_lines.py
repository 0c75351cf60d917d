"""Finds the line on which a field of a config.pbtxt stands; protobuf does not keep it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_TOKEN = re.compile(
    r"""
    (?P<skip> \#[^\n]* | [\s,;:]+ )
    | (?P<string> "(?:\\.|[^"\\\n])*" | '(?:\\.|[^'\\\n])*' )
    | (?P<name> [A-Za-z_]\w* )
    | (?P<mark> [{}<>\[\]] )
    | (?P<other> [^\s{}<>\[\],;:#"']+ | . )
    """,
    re.VERBOSE,
)


def field_lines(text: str) -> dict[str, int]:
    """Map each field that ``text`` sets to its line, counted from 1.

    A field is called by its path with every index given: ``input[1].dims[0]`` is the first
    ``dims`` of the second ``input``. Entries of a map with text keys are called by their key too:
    ``parameters["device"]``. Expects text that protobuf could parse; any other text gives
    an incomplete map, never an error.
    """
    scan = _Scan(_tokens(text))
    scan.message("")
    return scan.lines


def _tokens(text: str) -> Iterator[tuple[str, str, int]]:
    line = 1
    for match in _TOKEN.finditer(text):
        kind = str(match.lastgroup)
        if kind != "skip":
            yield kind, match.group(), line
        line += match.group().count("\n")


@dataclass(slots=True)
class _Scan:
    tokens: Iterator[tuple[str, str, int]]
    lines: dict[str, int] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    def message(self, prefix: str) -> None:
        """Read fields up to the closing brace. A name that follows a name is its enum value."""
        path = ""
        for kind, token, line in self.tokens:
            if token in ("}", ">"):
                return
            if token in ("{", "<"):
                self._enter(path, line)
            elif token == "[":
                self._elements(path)
                path = ""
            elif kind == "name" and not path:
                path = prefix + token
                self.lines.setdefault(f"{path}[{self.seen[path]}]", line)
                continue
            else:
                self.seen[path] += 1
                if kind == "string" and path == f"{prefix}key":
                    self._name_entry(prefix, token)
            path = ""

    def _name_entry(self, prefix: str, key: str) -> None:
        entry = prefix.removesuffix(".")
        if entry in self.lines:
            self.lines[f'{entry[: entry.rindex("[")]}["{key[1:-1]}"]'] = self.lines[entry]

    def _elements(self, path: str) -> None:
        for _, token, line in self.tokens:
            if token == "]":
                return
            if token in ("{", "<"):
                self._enter(path, line)

    def _enter(self, path: str, line: int) -> None:
        index = self.seen[path]
        self.seen[path] += 1
        self.lines.setdefault(f"{path}[{index}]", line)
        self.message(f"{path}[{index}].")
