"""A repository is scanned: versions, files, and what is wrong with either."""

import os
import shutil
import sys
from pathlib import Path

import pytest

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.errors import RepositoryError
from headrace_server.models.repository import (
    ModelEntry,
    ModelKind,
    model_names,
    read_model,
    scan,
)


def put(repository: Path, *paths: str, **configs: str) -> Path:
    """Write empty files, and a config.pbtxt for each model given by keyword."""
    for path in paths:
        (repository / path).parent.mkdir(parents=True, exist_ok=True)
        (repository / path).touch()
    for model, text in configs.items():
        (repository / model).mkdir(parents=True, exist_ok=True)
        (repository / model / "config.pbtxt").write_text(text)
    return repository


def only(entries: list[ModelEntry]) -> ModelEntry:
    assert len(entries) == 1
    return entries[0]


def versions(entry: ModelEntry) -> list[int]:
    return [source.version for source in entry.versions]


def test_every_kind_is_known_by_its_file_name(tmp_path: Path) -> None:
    put(tmp_path, "a/1/model.pt2", "b/1/model.pt", "c/1/model.py", "c/1/encoder.py")
    entries = scan(tmp_path)
    assert [entry.name for entry in entries] == ["a", "b", "c"]
    assert [entry.versions[0].kind for entry in entries] == [
        ModelKind.EXPORTED,
        ModelKind.TORCHSCRIPT,
        ModelKind.PYTHON,
    ]
    source = entries[0].versions[0]
    assert (source.name, source.version) == ("a", 1)
    assert source.file == tmp_path / "a" / "1" / "model.pt2"
    assert source.directory == tmp_path / "a" / "1"
    assert source.config_file == tmp_path / "a" / "config.pbtxt"


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere all names are Unicode")
def test_a_name_that_is_no_utf_8_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    put(tmp_path, "good/1/model.pt2", os.fsdecode(b"caf\xe9/1/model.pt2"))
    put(tmp_path, os.fsdecode(b"empty/1/na\xefve"))
    assert model_names(tmp_path) == ["caf\\xe9", "empty", "good"]
    broken, empty, good = scan(tmp_path)
    assert (broken.name, broken.versions) == ("caf\\xe9", ())
    assert broken.error == "expected a name in UTF-8, got 'caf\\xe9'"
    assert empty.error is not None
    assert "found 'na\\xefve'" in empty.error
    assert versions(good) == [1]


def test_latest_version_is_served_by_default_and_counted_as_a_number(tmp_path: Path) -> None:
    put(tmp_path, "m/2/model.pt2", "m/10/model.pt2", "m/9/model.pt2")
    assert versions(only(scan(tmp_path))) == [10]


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("version_policy { latest { num_versions: 2 } }", [2, 10]),
        ("version_policy { latest { } }", [10]),
        ("version_policy { all { } }", [1, 2, 10]),
        ("version_policy: { specific: { versions: [2, 1] } }", [1, 2]),
    ],
)
def test_version_policy_selects_oldest_first(
    tmp_path: Path, policy: str, expected: list[int]
) -> None:
    put(tmp_path, "m/1/model.pt2", "m/2/model.pt2", "m/10/model.pt2", m=policy)
    assert versions(only(scan(tmp_path))) == expected


def test_a_broken_version_leaves_the_others_served(tmp_path: Path) -> None:
    put(
        tmp_path,
        "m/1/model.pt2",
        "m/2/weights.bin",
        m="version_policy { specific { versions: [1, 2, 3] } }",
    )
    entry = only(scan(tmp_path))
    assert versions(entry) == [1]
    assert entry.error is None
    assert "found 'weights.bin'" in entry.broken_versions[2]
    assert "No such file" in entry.broken_versions[3]


def test_a_version_beyond_the_protocol_is_refused_and_the_others_are_not(tmp_path: Path) -> None:
    put(tmp_path, f"m/{2**63 - 1}/model.py", f"m/{2**63}/model.py")
    entry = only(scan(tmp_path))
    assert not entry.versions
    assert entry.error == (
        f"expected a version of at most 9223372036854775807, got {tmp_path / 'm'}/{2**63}"
    )
    put(tmp_path, m="version_policy { all { } }")
    entry = only(scan(tmp_path))
    assert versions(entry) == [2**63 - 1]
    assert list(entry.broken_versions) == [2**63]


def test_odd_directories_are_ignored_with_a_note(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.pt2", "m/007/model.pt2", "m/0/model.pt2", "m/warmup/x", "m/.git/x")
    entry = only(scan(tmp_path))
    assert versions(entry) == [1]
    assert len(entry.notes) == 2
    assert all("without leading zeros" in note for note in entry.notes)


def test_hidden_directories_and_stray_files_are_no_models(tmp_path: Path) -> None:
    put(tmp_path, ".cache/1/model.pt2", "README.md", "m/1/model.pt2")
    assert only(scan(tmp_path)).name == "m"


@pytest.mark.parametrize(
    ("paths", "parts"),
    [
        (["m/1/model.pt2", "m/1/model.py"], ["exactly one of", "found 'model.pt2', 'model.py'"]),
        (["m/1/net.onnx"], ["'model.pt2', 'model.pt', 'model.py'", "found 'net.onnx'"]),
        (["m/model.pt2"], ["m/1 with one of", "found 'model.pt2'; move 'model.pt2' to", "m/1"]),
        (
            ["m/n/1/model.py"],
            ["m/1 with one of", "found 'n'; ", "m looks like a repository itself"],
        ),
        (["m/n/model.bin"], ["m/1 with one of", "found 'n'"]),
    ],
)
def test_error_says_which_file_was_expected_and_what_was_found(
    tmp_path: Path, paths: list[str], parts: list[str]
) -> None:
    entry = only(scan(put(tmp_path, *paths)))
    assert entry.versions == ()
    assert entry.error is not None
    for part in parts:
        assert part in entry.error


def test_configured_file_name_is_honoured(tmp_path: Path) -> None:
    put(
        tmp_path,
        "m/1/model.pt2",
        "m/1/net.pt2",
        m='default_model_filename: "net.pt2"',
    )
    assert only(scan(tmp_path)).versions[0].file.name == "net.pt2"


@pytest.mark.parametrize("name", ["../other/model.pt2", "a/model.pt2", "..", "/model.py"])
def test_configured_file_name_cannot_leave_the_version_directory(tmp_path: Path, name: str) -> None:
    put(tmp_path, "m/1/model.pt2", m=f'default_model_filename: "{name}"')
    entry = only(scan(tmp_path))
    assert entry.error is not None
    assert "line 1: default_model_filename must name a file" in entry.error


def test_configured_file_name_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.onnx", m='default_model_filename: "model.onnx"')
    error = only(scan(tmp_path)).error
    assert error is not None
    assert "must end in .pt2, .pt, .py" in error


def test_broken_configuration_breaks_its_own_model_only(tmp_path: Path) -> None:
    put(tmp_path, "a/1/model.pt2", "b/1/model.pt2", a="max_batch_size: what")
    first, second = scan(tmp_path)
    assert first.error is not None
    assert first.versions == ()
    assert second.error is None


@pytest.mark.parametrize("target", ["nothing.pbtxt", "config.pbtxt"])
def test_a_configuration_that_leads_to_nothing_is_an_error(tmp_path: Path, target: str) -> None:
    repository = put(tmp_path, "m/1/model.py")
    (repository / "m" / "config.pbtxt").symlink_to(target)
    entry = only(scan(repository))
    assert entry.error is not None
    assert "config.pbtxt: cannot be read: " in entry.error


def test_configuration_comes_with_the_entry(tmp_path: Path) -> None:
    put(tmp_path, "m/1/model.pt2", m="max_batch_size: 8")
    assert only(scan(tmp_path)).config == ModelConfig(max_batch_size=8)
    override = ModelConfig(name="m", max_batch_size=4)
    assert read_model(tmp_path / "m", override).config == override
    wrong = read_model(tmp_path / "m", ModelConfig(name="n"))
    assert wrong.error is not None
    assert "the directory is 'm'" in wrong.error


def test_missing_repository_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match=r"expected a directory of models, .*nowhere"):
        scan(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(RepositoryError, match="Not a directory"):
        scan(tmp_path / "file")


@pytest.mark.parametrize("link", ["m", "m/1", "m/1/model.pt2", "m/config.pbtxt"])
def test_a_link_out_of_the_repository_is_refused(tmp_path: Path, link: str) -> None:
    outside = put(tmp_path / "outside", "m/1/model.pt2", m="max_batch_size: 4")
    repository = put(tmp_path / "repository", "m/1/model.pt2", m="max_batch_size: 4")
    shutil.move(repository / link, tmp_path / "aside")
    (repository / link).symlink_to(outside / link)
    entry = only(scan(repository))
    assert not entry.versions
    assert entry.error is not None
    assert "leads out of the repository" in entry.error


def test_links_that_stay_inside_are_followed_and_the_repository_may_be_one(
    tmp_path: Path,
) -> None:
    # As Kubernetes mounts a ConfigMap: every name is a link into a directory beside it.
    put(tmp_path / "mounted" / "..data", "model.pt2")
    put(tmp_path / "mounted", m="max_batch_size: 4")
    (tmp_path / "mounted" / "m" / "1").mkdir()
    (tmp_path / "mounted" / "m" / "1" / "model.pt2").symlink_to("../../..data/model.pt2")
    (tmp_path / "repository").symlink_to("mounted")
    assert versions(only(scan(tmp_path / "repository"))) == [1]
