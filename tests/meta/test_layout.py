"""What a stranger relies on: every file says what it is for, and nothing imports torch early."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = [
    path
    for folder in ("client", "server", "bench", "examples", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "protocol" not in path.parts or path.name == "__init__.py"
]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_file_says_in_its_first_line_what_it_is_for(path: Path) -> None:
    docstring = ast.get_docstring(ast.parse(path.read_text()))
    assert docstring, "no module docstring"
    first = docstring.splitlines()[0]
    assert first[-1] in ".:?", f"not a sentence: {first!r}"


def test_front_process_never_imports_torch() -> None:
    code = "import sys, headrace_server.app; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_readme_promises_only_targets_that_exist() -> None:
    promised = set(re.findall(r"`?make ([a-z-]+)`?", (ROOT / "README.md").read_text()))
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert promised <= targets


def test_every_metric_is_in_the_readme_and_every_one_there_exists() -> None:
    from headrace_server.telemetry import names

    exported = {m.name + ("_total" if m.kind == "counter" else "") for m in names.ALL}
    documented = set(re.findall(r"^\| `(headrace_\w+)`", (ROOT / "README.md").read_text(), re.M))
    assert documented == exported


def test_every_test_that_a_document_names_exists() -> None:
    tests = "".join(path.read_text() for path in SOURCES if "tests" in path.parts)
    scenarios = {path.stem for path in (ROOT / "tests" / "scenarios").glob("*.txt")}
    for document in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")):
        named = re.findall(r"`(test_\w+|\d+-[a-z-]+)`", document.read_text())
        missing = {name for name in named if f"def {name}(" not in tests and name not in scenarios}
        assert not missing, document.name


def test_every_setting_is_in_the_readme() -> None:
    from headrace_server.config import ServerConfig

    documented = set(re.findall(r"`HEADRACE_(\w+)`", (ROOT / "README.md").read_text()))
    assert documented == {name.upper() for name in ServerConfig.__struct_fields__}
