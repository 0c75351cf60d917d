"""Certificates: what is refused at the start, and what a renewal that goes wrong leaves."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest

from certificate_files import Pair, self_signed
from headrace_server.transport.certificates import (
    CertificateError,
    CertificateFiles,
    Certificates,
)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Pair, Pair]:
    directory = tmp_path_factory.mktemp("certificates")
    return self_signed(directory, "first"), self_signed(directory, "second")


@pytest.fixture
def pair(pairs: tuple[Pair, Pair], tmp_path: Path) -> Pair:
    """The first one, in files that a test may change."""
    shutil.copy(pairs[0].cert, tmp_path / "tls.crt")
    shutil.copy(pairs[0].key, tmp_path / "tls.key")
    return Pair(tmp_path / "tls.crt", tmp_path / "tls.key")


def refusal(files: CertificateFiles) -> str:
    with pytest.raises(CertificateError) as refused:
        Certificates(files)
    text = str(refused.value)
    assert "\n" not in text
    assert "PRIVATE" not in text
    return text


def test_a_key_of_another_certificate_is_refused(pairs: tuple[Pair, Pair]) -> None:
    text = refusal(CertificateFiles(pairs[0].cert, pairs[1].key))
    assert "mismatch" in text
    assert str(pairs[1].key) in text


def test_missing_and_swapped_files_are_refused_by_name(pair: Pair, tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    assert f"cannot read {missing}" in refusal(CertificateFiles(pair.cert, missing))
    assert "expected a PEM certificate" in refusal(CertificateFiles(pair.key, pair.cert))
    assert str(pair.key) in refusal(CertificateFiles(pair.cert, pair.key, client_ca=pair.key))


def test_a_renewal_counts_from_the_next_connection_on(pairs: tuple[Pair, Pair], pair: Pair) -> None:
    certificates = Certificates(CertificateFiles(pair.cert, pair.key))
    before = certificates.context()
    assert certificates.context() is before
    shutil.copy(pairs[1].cert, pair.cert)
    shutil.copy(pairs[1].key, pair.key)
    assert certificates.context() is not before


def test_a_renewal_in_halves_leaves_the_old_one_until_it_is_whole(
    pairs: tuple[Pair, Pair], pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    certificates = Certificates(CertificateFiles(pair.cert, pair.key))
    before = certificates.context()
    shutil.copy(pairs[1].cert, pair.cert)
    with caplog.at_level(logging.WARNING):
        assert certificates.context() is before
        assert certificates.context() is before
    assert len(caplog.records) == 1
    shutil.copy(pairs[1].key, pair.key)
    assert certificates.context() is not before
