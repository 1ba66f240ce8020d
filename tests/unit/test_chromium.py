"""The browser for the tests of the pages: the first one that starts, or a sentence if there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.browser import chromium


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without a browser, and without anybody to get one from; its only folder of programs."""
    programs = tmp_path / "programs"
    programs.mkdir()
    monkeypatch.setenv("PATH", str(programs))
    monkeypatch.delenv("CHROME", raising=False)
    monkeypatch.setattr(chromium, "PLAYWRIGHT_FOLDER", tmp_path / "playwright")
    monkeypatch.setattr(chromium, "download", lambda: "Playwright: no network")
    monkeypatch.setattr(chromium, "install", lambda: "apt: this is not root")
    return programs


def put(path: Path, status: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\nexit {status}\n")
    path.chmod(0o755)
    return path


def test_where_there_is_none_a_sentence_says_what_was_tried_and_what_to_do(bare: Path) -> None:
    with pytest.raises(chromium.NoChromium) as raised:
        chromium.provide()
    assert "apt: this is not root; Playwright: no network" in str(raised.value) and "CHROME=" in str(raised.value)


def test_one_that_does_not_start_is_passed_over(bare: Path) -> None:
    put(bare / "chromium", status=1)
    other = put(bare / "google-chrome")
    assert chromium.provide() == str(other)


def test_what_was_downloaded_once_is_found_again(bare: Path, tmp_path: Path) -> None:
    shell = put(
        tmp_path
        / "playwright"
        / "chromium_headless_shell-1255"
        / "chrome-headless-shell-linux64"
        / "chrome-headless-shell"
    )
    assert chromium.provide() == str(shell)


@pytest.mark.parametrize("way", ["install", "download"])
def test_what_is_installed_or_downloaded_is_used(bare: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    def get() -> str:
        put(bare / "chromium")
        return ""

    monkeypatch.setattr(chromium, way, get)
    assert chromium.provide() == str(bare / "chromium")


def test_the_one_that_is_named_is_the_only_one(bare: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bare / "chromium")
    named = put(bare.parent / "mine")
    monkeypatch.setenv("CHROME", str(named))
    assert chromium.provide() == str(named)
    monkeypatch.setenv("CHROME", "/no/such/chrome")
    with pytest.raises(chromium.NoChromium, match="/no/such/chrome"):
        chromium.provide()
    assert chromium.find() is None
