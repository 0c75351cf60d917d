"""What counts as another model on disk, and what does not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from headrace_server.models.repository import read_model
from headrace_server.models.stamps import Stamp, stamps_of


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def stamp(directory: Path) -> Stamp:
    return stamps_of(read_model(directory))[1]


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write(tmp_path / "m" / "1" / "model.py")
    return tmp_path / "m"


def replaced(model: Path) -> None:
    write(model / "1" / "new.py")
    (model / "1" / "new.py").replace(model / "1" / "model.py")


@pytest.mark.parametrize(
    "change",
    [
        lambda model: write(model / "1" / "model.py", "changed"),
        replaced,
        lambda model: write(model / "1" / "vocabulary.txt", "words"),
        lambda model: write(model / "warmup" / "x.bin", "data"),
        lambda model: write(model / "config.pbtxt", "max_batch_size: 2"),
    ],
)
def test_files_and_settings_make_another_model(
    model: Path, change: Callable[[Path], object]
) -> None:
    before = stamp(model)
    assert stamp(model) == before
    change(model)
    assert stamp(model) != before
    assert not before.differs_in_instances_alone(stamp(model))


@pytest.mark.parametrize(
    "file", ["1/__pycache__/model.pyc", "1/.cache/x", "README.md", "2.tmp/model.py"]
)
def test_by_products_and_strangers_do_not(model: Path, file: str) -> None:
    before = stamp(model)
    write(model / file)
    assert stamp(model) == before


def test_the_number_of_workers_stands_apart(model: Path) -> None:
    write(model / "config.pbtxt", "max_batch_size: 2")
    one = stamp(model)
    write(model / "config.pbtxt", "max_batch_size: 2 instance_group { count: 2 }")
    two = stamp(model)
    assert one.differs_in_instances_alone(two)
    assert not two.differs_in_instances_alone(two)
    write(model / "config.pbtxt", "max_batch_size: 3 instance_group { count: 3 }")
    assert not two.differs_in_instances_alone(stamp(model))


def test_a_file_that_vanishes_meanwhile_is_a_change(model: Path) -> None:
    entry = read_model(model)
    before = stamps_of(entry)
    (model / "1" / "model.py").unlink()
    assert stamps_of(entry) != before
