"""Bearer tokens: which are valid, which files are accepted, and the errors for the others."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from compose.credentials import NO_TOKENS
from shared_models.web import tokens
from shared_models.web.tokens import Tokens, main, make, needs_token, open_tokens, parse, refusal_to_start


def bearer(token: str) -> bytes:
    return f"Bearer {token}".encode()


def test_a_token_that_was_made_is_found_by_its_name_and_only_its_hash_is_kept() -> None:
    token, line = make("till-7")
    assert Tokens(line).find(bearer(token)) == "till-7"
    assert token not in line and hashlib.sha256(token.encode()).hexdigest() in line
    assert make("till-7")[0] != token and len(token) > 43


def test_a_line_is_appended_to_the_file_that_credentials_makes() -> None:
    _, line = make("till-7")
    assert list(parse(f"{NO_TOKENS}{line}\n").values()) == ["till-7"]
    assert parse(NO_TOKENS) == {}


def test_two_tokens_are_valid_at_once_for_rotation() -> None:
    (old, old_line), (new, new_line) = make("till-2025"), make("till-2026")
    known = Tokens(f"{old_line},{new_line}")
    assert [known.find(bearer(each)) for each in (old, new)] == ["till-2025", "till-2026"]
    assert Tokens(f"# both\n{old_line}\n\n{new_line} # new\n").find(bearer(new)) == "till-2026"


@pytest.mark.parametrize(
    "authorization",
    [
        b"",
        b"Bearer",
        b"Bearer ",
        b"Bearer x",
        b"Basic {token}",
        b"{token}",
        b"Bearer {token}x",
        b"Bearer \xff\x00",
        b"Bearer {hash}",
    ],
)
def test_nothing_else_is_let_in(authorization: bytes) -> None:
    token, line = make("till")
    presented = authorization.replace(b"{token}", token.encode()).replace(b"{hash}", line.partition(":")[2].encode())
    assert Tokens(line).find(presented) is None


@pytest.mark.parametrize("scheme", [b"bearer ", b"BEARER ", b"  Bearer  "])
def test_the_scheme_is_understood_however_it_is_written(scheme: bytes) -> None:
    token, line = make("till")
    assert Tokens(line).find(scheme + token.encode()) == "till"


@pytest.mark.parametrize("text", ["till", "till:abc", "till:" + "g" * 64, ":" + "0" * 64, "a b:" + "0" * 64])
def test_a_line_that_is_wrong_is_named_by_its_number_and_not_repeated(text: str) -> None:
    with pytest.raises(ValueError, match="entry 2 is not name:sha256") as raised:
        parse(f"{make('first')[1]},{text}")
    assert text not in str(raised.value)


def test_a_token_is_rotated_under_its_name() -> None:
    (old, old_line), (new, new_line) = make("till"), make("till")
    known = Tokens(f"{old_line},{new_line}")
    assert [known.find(bearer(each)) for each in (old, new)] == ["till", "till"]


def test_three_tokens_of_one_name_and_one_token_twice_are_refused() -> None:
    lines = [make("till")[1] for _ in range(3)]
    with pytest.raises(ValueError, match="more than 2 tokens are named till"):
        parse(",".join(lines))
    with pytest.raises(ValueError, match="entry 2 is there twice"):
        parse(f"{lines[0]},{lines[0]}")


def test_a_file_is_read_again_when_it_changes_and_a_broken_one_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tokens, "LOOK_SECONDS", 0.0)
    (old, old_line), (new, new_line) = make("old"), make("new")
    path = tmp_path / "tokens"
    path.write_text(old_line)
    known = Tokens(old_line, str(path))

    def found() -> list[str | None]:
        return [known.find(bearer(each)) for each in (old, new)]

    assert found() == ["old", None]
    path.write_text(f"{old_line}\n{new_line}\n")
    assert found() == ["old", "new"]
    replacement = tmp_path / "replacement"
    replacement.write_text(new_line)
    replacement.replace(path)
    assert found() == [None, "new"]
    for broken in (new, ""):
        path.write_text(broken)
        assert found() == [None, "new"]
    path.unlink()
    assert found() == [None, "new"]
    assert new not in capsys.readouterr().out


def test_a_service_without_tokens_starts_only_where_that_is_said_by_name() -> None:
    line = make("till")[1]
    assert refusal_to_start("", open_tokens("", "", None)) and refusal_to_start("", open_tokens("", " \n", None))
    assert refusal_to_start("off", open_tokens("off", "", None)) is None
    assert refusal_to_start("", open_tokens("", line, None)) is None
    for auth, text in (("off", line), ("on", line), ("OFF", ""), ("0", "")):
        with pytest.raises(ValueError, match="AUTH"):
            open_tokens(auth, text, None)


@pytest.mark.parametrize(
    ("path", "needed"),
    [
        *[(path, False) for path in ("/livez", "/readyz", "/docs", "/openapi.json", "/static/x.css")],
        *[(path, True) for path in ("/metrics", "/v1/counts", "/", "/nowhere", "/livez/", "/livez/../v1", "/static")],
    ],
)
def test_paths_that_need_a_token(path: str, needed: bool) -> None:
    assert needs_token(path, metrics_public=False) is needed
    assert needs_token("/metrics", metrics_public=True) is False


def test_a_page_of_a_services_own_is_open_and_nothing_beside_it():
    own = frozenset({"/"})
    assert needs_token("/", metrics_public=False)
    assert not needs_token("/", metrics_public=False, also_open=own)
    for path in ("", "//", "/v1/status", "/index.html", "/metrics"):
        assert needs_token(path, metrics_public=False, also_open=own), path


def test_the_command_prints_a_token_and_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["till"]) == 0
    (_, token), (_, line) = (printed.split() for printed in capsys.readouterr().out.splitlines())
    assert Tokens(line).find(bearer(token)) == "till"
    assert main([]) == main(["a b"]) == main(["a:b"]) == 2
