"""The tokens file: who is found, what they may use, how a bad file is refused."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from headrace_server.transport.tenants import (
    REREAD_S,
    Tenants,
    TokensError,
    TokensFile,
    hash_of,
    new_token,
    parse_tenants,
)


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def file_of(token: str, models: str = '["*"]', more: str = "") -> str:
    return f'[tenants.t]\ntokens = ["{hash_of(token)}"]\nmodels = {models}\n{more}\n'


def test_a_token_is_found_by_its_hash_and_another_is_not() -> None:
    token = new_token()
    tenants = Tenants(parse_tenants(file_of(token), "f"))
    found = tenants.find(digest(token))
    assert found is not None
    assert found.name == "t"
    assert tenants.find(digest(new_token())) is None
    assert tenants.find(digest("")) is None


def test_both_tokens_count_while_one_replaces_the_other() -> None:
    text = f'[tenants.t]\ntokens = ["{hash_of("old")}", "{hash_of("new")}"]'
    tenants = Tenants(parse_tenants(text, "f"))
    assert tenants.find(digest("old")) == tenants.find(digest("new")) is not None


def test_without_models_a_tenant_may_use_none() -> None:
    tenant = parse_tenants(f'[tenants.t]\ntokens = ["{hash_of("x")}"]', "f")["t"]
    assert not tenant.may_use("digits")
    assert not tenant.admin


def test_weight_is_one_unless_the_file_says_otherwise() -> None:
    assert parse_tenants(file_of("x"), "f")["t"].weight == 1.0
    assert parse_tenants(file_of("x", more="weight = 2"), "f")["t"].weight == 2.0
    for wrong in ("0", "-1", "nan", "inf", '"2"'):
        with pytest.raises(TokensError, match="weight"):
            parse_tenants(file_of("x", more=f"weight = {wrong}"), "f")


def test_patterns_of_models_match_whole_names_in_their_case() -> None:
    tenant = parse_tenants(file_of("x", '["digits", "text-*"]'), "f")["t"]
    assert [tenant.may_use(n) for n in ("digits", "text-a", "text-")] == [True] * 3
    assert [tenant.may_use(n) for n in ("digits2", "Digits", "my-text-a", "")] == [False] * 4


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[tenants.t", "not valid TOML"),
        ("", "missing required field `tenants`"),
        (file_of("x", more="admni = true"), "tenant 't': Object contains unknown field `admni`"),
        ("[tenants]\nt = 5", "tenant 't': Expected `object`, got `int`"),
        ("[tenants.t]\nmodels = []", "tenant 't': Object missing required field `tokens`"),
        (file_of("x", more="requests_per_second = 0"), "requests_per_second"),
        (file_of("x", more='bytes_per_second = "1M"'), "bytes_per_second"),
        (file_of("x") + file_of("x").replace("tenants.t", "tenants.u"), "the same token"),
    ],
)
def test_a_bad_file_is_one_line_with_its_name(text: str, words: str) -> None:
    with pytest.raises(TokensError) as refused:
        parse_tenants(text, "tokens.toml")
    assert words in str(refused.value)
    assert "tokens.toml" in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_token_pasted_in_place_of_its_hash_is_refused_and_not_repeated() -> None:
    token = new_token()
    with pytest.raises(TokensError) as refused:
        parse_tenants(f'[tenants.t]\ntokens = ["{token}"]', "f")
    assert "token 1 of tenant 't'" in str(refused.value)
    assert token not in str(refused.value)


def test_a_changed_file_counts_after_a_second(tmp_path: Path) -> None:
    moment = 0.0
    path = tmp_path / "tokens.toml"
    path.write_text(file_of("old"))
    tokens = TokensFile(path, lambda: moment)
    path.write_text(file_of("new"))
    assert tokens.tenants().find(digest("old")) is not None
    moment = REREAD_S
    assert tokens.tenants().find(digest("old")) is None
    assert tokens.tenants().find(digest("new")) is not None


def test_a_file_that_breaks_leaves_what_it_said_before_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    moment = 0.0
    path = tmp_path / "tokens.toml"
    path.write_text(file_of("old"))
    tokens = TokensFile(path, lambda: moment)
    path.write_text("[tenants")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            moment += REREAD_S
            assert tokens.tenants().find(digest("old")) is not None
    assert len(caplog.records) == 1


def test_from_the_start_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokensError, match="cannot read"):
        TokensFile(tmp_path / "none.toml", lambda: 0.0)
