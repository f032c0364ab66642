"""Secrets among arguments, and paths below the root."""

from __future__ import annotations

import pytest

from lmccheck.report.redact import redacted, relative


@pytest.mark.parametrize(
    "argument",
    [
        "--token=abc", "--hf-token=abc", "--password=abc", "--api-key=abc", "-oapi_key=abc", "--client_secret=abc",
        "--x=token=abc", "--auth=abc", "https://abc@host", "--url=https://user:abc@host/path", "hf_abcabcabcabc",
        "--x=abc45678901234567890DEF", "--x=0123456789abcdef0123456789abcdef",
    ],
)  # fmt: skip
def test_what_looks_like_a_secret_is_hidden(argument):
    """By the option's name, by the shape of a known token, as user information of a URL, as a long random text."""
    told = redacted([argument])[0]
    assert "abc" not in told
    assert "***" in told


@pytest.mark.parametrize(
    "argument",
    [
        "--lmc-models", "--lmc-report-json=out/report.json", "-k", "key and not monkey", "--keyword=x", "--author=me",
        "fixtures/lmc.toml::transformer-seed0-seed1::linear_connectivity", "--lmc-seed=3", "-m", "not slow",
        "--basetemp=/tmp/pytest/abc/0123", "--maxfail=1", "gates/very/long/path/with/numbers1234/and/so/on.lmc.toml",
    ],
)  # fmt: skip
def test_what_is_none_stays(argument):
    """Ids, paths, expressions and numbers."""
    assert redacted([argument]) == [argument]


def test_the_value_after_a_secret_option_is_hidden():
    """Given apart as well; what follows it stays."""
    assert redacted(["--api-token", "abc", "lmc.toml"]) == ["--api-token", "***", "lmc.toml"]
    assert redacted(["--api-token", "--lmc-models"]) == ["--api-token", "--lmc-models"]


def test_paths_are_relative_to_the_root():
    """As values and inside texts; others' names that begin alike stay; a path elsewhere is relative, too."""
    document = {
        "path": "/home/me/p/a.safetensors",
        "told": [
            "read /home/me/p/models.py:3",
            "/home/me/pq/x",
            "/x/home/me/p/y",
            "/home/me/p",
            "--root=/home/me/p",
        ],
        "files": {"a": {"path": "/home/other/b"}},
        "number": 3,
    }
    assert relative(document, "/home/me/p") == {
        "path": "a.safetensors",
        "told": ["read models.py:3", "/home/me/pq/x", "/x/home/me/p/y", ".", "--root=."],
        "files": {"a": {"path": "../../other/b"}},
        "number": 3,
    }
    assert relative(document, "/") == document
