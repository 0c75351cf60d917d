"""Reads a config.pbtxt into a `ModelConfig`; what is wrong with it is reported with its line.

Front-safe: standard library and protobuf only.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING

from google.protobuf import json_format, text_format

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.config_lines import field_lines
from headrace_server.models.errors import ConfigError

if TYPE_CHECKING:
    from google.protobuf.descriptor import Descriptor, EnumDescriptor

CONFIG_FILE = "config.pbtxt"

Locate = Callable[[str], str]
"""Says where a field stands: ``input[1].dims`` -> ``model/config.pbtxt, line 9: input[1].dims``."""

_POSITION = re.compile(r"^(?:\d+:\d+ : )?")
_UNKNOWN_FIELD = re.compile(r'Message type "([\w.]+)" has no field named "([^"]+)"')
_UNKNOWN_VALUE = re.compile(r'Enum type "([\w.]+)" has no value (?:named|with number) ([\w+-]+)')
_WITHOUT_INDEX = re.compile(r"(?<![\]])(?=\.|$)")


@dataclass(frozen=True, slots=True)
class ConfigText:
    """The text of a configuration and the file it came from, which errors name."""

    file: Path
    text: str

    @classmethod
    def read(cls, file: Path) -> ConfigText:
        """Read ``file``; raises ConfigError if it is not readable UTF-8."""
        try:
            return cls(file, file.read_text(encoding="utf-8"))
        except UnicodeDecodeError as error:
            raise ConfigError(f"{file}: expected UTF-8 text, got {error}") from error
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror}") from error

    def parse(self) -> ModelConfig:
        """Parse the text; raises ConfigError for anything that is not a `ModelConfig`."""
        try:
            return text_format.Parse(self.text, ModelConfig())
        except text_format.ParseError as error:
            line = error.GetLine()
            where = f"{self.file}, line {line}" if line else str(self.file)
            raise ConfigError(f"{where}: {_explain(str(error))}") from error

    def locate(self, path: str) -> str:
        """Say where the field ``path`` stands; an unwritten field is named without a line."""
        line = field_lines(self.text).get(_WITHOUT_INDEX.sub("[0]", path))
        return f"{self.file}, line {line}: {path}" if line else f"{self.file}: {path}"


def config_from_json(text: str) -> ModelConfig:
    """A configuration as load requests bring it: JSON, with the field names of config.pbtxt or
    their camel-case forms. Raises ConfigError for anything that is not a `ModelConfig`."""
    try:
        content = json.loads(text)
        json.dumps(content, ensure_ascii=False).encode()  # protobuf falls over lone surrogates
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"model configuration: expected JSON: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"model configuration: expected a JSON object, got {text[:40]!r}")
    try:
        return json_format.ParseDict(content, ModelConfig())
    except json_format.ParseError as error:
        raise ConfigError(f"model configuration: {_explain(str(error))}") from None


def locate_nowhere(path: str) -> str:
    """Name a field of a configuration that did not come from a file."""
    return f"model configuration: {path}"


def locate_in(file: Path) -> Locate:
    """Return the `Locate` of a file that may be absent or may have changed meanwhile."""
    try:
        return ConfigText.read(file).locate
    except ConfigError:
        return locate_nowhere


def _explain(message: str) -> str:
    message = _POSITION.sub("", message, count=1)
    unknown = _UNKNOWN_FIELD.search(message)
    if unknown:
        descriptor = _messages()[unknown[1]]
        known = [field.name for field in descriptor.fields]
        return f"unknown field '{unknown[2]}' in {descriptor.name}; {_suggest(unknown[2], known)}"
    value = _UNKNOWN_VALUE.search(message)
    if value:
        enum = _enums()[value[1]]
        known = [entry.name for entry in enum.values if not entry.name.endswith("_INVALID")]
        return f"unknown value '{value[2]}' for {enum.name}; {_suggest(value[2], known)}"
    return message


def _suggest(found: str, known: list[str]) -> str:
    listed = f"known are {', '.join(known)}"
    closest = get_close_matches(found, known, n=1)
    return f"write '{closest[0]}' instead? ({listed})" if closest else listed


def _messages() -> dict[str, Descriptor]:
    return {descriptor.full_name: descriptor for descriptor in _walk(ModelConfig.DESCRIPTOR)}


def _enums() -> dict[str, EnumDescriptor]:
    return {
        field.enum_type.full_name: field.enum_type
        for descriptor in _walk(ModelConfig.DESCRIPTOR)
        for field in descriptor.fields
        if field.enum_type is not None
    }


def _walk(root: Descriptor) -> Iterator[Descriptor]:
    """Yield ``root`` and every message type that its fields can hold, each once."""
    found = {root.full_name}
    pending = [root]
    while pending:
        descriptor = pending.pop()
        yield descriptor
        for field in descriptor.fields:
            held = field.message_type
            if held is not None and held.full_name not in found:
                found.add(held.full_name)
                pending.append(held)
