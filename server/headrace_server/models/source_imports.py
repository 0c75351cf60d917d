"""Imports a model's code from its source, never from bytecode that was kept of it.

Python takes kept bytecode for that of a source file of the same size and time of change, to the
second: a model.py that was put in its place by a tool that keeps times would be served as it was.
"""

from __future__ import annotations

import sys
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)
from pathlib import Path
from types import CodeType


class SourceLoader(SourceFileLoader):
    """Compiles what it loads, each time."""

    def get_code(self, fullname: str) -> CodeType:
        """The code of the module. Raises OSError, SyntaxError."""
        path = self.get_filename(fullname)
        code: CodeType = self.source_to_code(self.get_data(path), path)
        return code


class SourceImports:
    """Has `version`, a directory, on the import path, until closed.

    What is imported from there or elsewhere in the model's directory comes from `SourceLoader`.
    """

    def __init__(self, version: Path) -> None:
        self._version = str(version)
        self._model = version.parent
        sys.path_hooks.insert(0, self._finder)
        sys.path_importer_cache.pop(self._version, None)
        sys.path.insert(0, self._version)

    def close(self) -> None:
        """Take the directory off the import path."""
        sys.path.remove(self._version)
        sys.path_hooks.remove(self._finder)
        sys.path_importer_cache.pop(self._version, None)

    def _finder(self, path: str) -> FileFinder:
        """A path hook. Raises ImportError for what is none of its business."""
        if not Path(path).resolve().is_relative_to(self._model):
            raise ImportError("expected a directory of the model", path=path)
        return FileFinder(
            path,
            (ExtensionFileLoader, EXTENSION_SUFFIXES),
            (SourceLoader, SOURCE_SUFFIXES),
            (SourcelessFileLoader, BYTECODE_SUFFIXES),
        )
