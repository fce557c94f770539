"""Secrets are taken out of texts in every form that batchd and commands write them in."""

from __future__ import annotations

import base64
import json
import re
import textwrap
from urllib.parse import quote, quote_plus

import pytest

from batchd.masking import MASK, Masker, looks, named, names_secret

SECRET = 'gh/p_ab "c" D+EF=1234\\5'


@pytest.mark.parametrize(
    "form",
    [
        SECRET,
        json.dumps(SECRET),
        json.dumps({"a": SECRET}),
        json.dumps(SECRET).replace("/", r"\/"),
        json.dumps(json.dumps({"a": SECRET})),
        json.dumps(json.dumps({"a": SECRET}).replace("/", r"\/")),
        json.dumps(json.dumps(json.dumps({"a": SECRET}))),
        quote(SECRET),
        quote(SECRET, safe=""),
        re.sub("%..", lambda letter: letter[0].lower(), quote(SECRET, safe="")),
        re.sub("%..", lambda letter: letter[0].lower(), quote_plus(SECRET)),
        quote_plus(SECRET),
    ],
)
def test_every_way_to_write_a_value_is_masked(form: str) -> None:
    """As it is, in JSON, in JSON within JSON, as the arguments of a tool are,
    with slashes escaped or not, in a URL.
    """
    masked = Masker([SECRET]).text(f"<{form}>")
    assert MASK in masked
    assert "EF" not in masked


@pytest.mark.parametrize("ahead", ["", "u", "us", "user:"])
@pytest.mark.parametrize("behind", ["", "\n", "@host"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_what_commands_know_is_masked_in_base64_too(
    ahead: str, behind: str, encode: object
) -> None:
    """Wherever it begins in what was encoded, as in a header of Basic authentication."""
    assert callable(encode)
    text = encode(f"{ahead}{SECRET}{behind}".encode()).decode()
    assert MASK in Masker(known=[SECRET]).text(text)


LONG = "".join(f"{n:x}-Key/" for n in range(200))


@pytest.mark.parametrize("secret", [SECRET, LONG[:58], LONG[:70], LONG])
@pytest.mark.parametrize("ahead", range(80))
def test_base64_in_lines_is_masked(secret: str, ahead: int) -> None:
    """As base64, openssl and OpenSSH wrap it, wherever it begins;
    in a block of YAML, and in JSON, where a line end has two letters.
    """
    masker = Masker(known=[secret])
    data = base64.b64encode(f"{'u' * ahead}{secret}, and more".encode()).decode()
    for width in (64, 70, 76):
        lines = textwrap.wrap(data, width)
        for joint in ("\n", "\r\n", "\n    ", "\\n"):
            masked = masker.text(f"<{joint.join(lines)}> kept\n")
            left = "".join(masked.split(joint))
            assert MASK in left
            assert left.rstrip().endswith("> kept")
            assert len(left) <= len(data) - len(secret) * 4 // 3 + 20, "its letters are gone"


@pytest.mark.parametrize("kept", range(1, 300, 7))
def test_half_of_it_at_a_cut_goes_too(kept: int) -> None:
    """What a cut left of base64 in lines is left out, on both sides."""
    masker = Masker(known=[LONG[:300]])
    lines = base64.encodebytes(LONG[:300].encode()).decode()
    assert masker.before_cut(f"text: {lines[:kept]}") == "text: "
    assert len(masker.after_cut(f"{lines[kept:]}: text")) <= len("t: text")


def test_a_secret_in_the_name_of_a_host_is_masked() -> None:
    """Those are written in lower case."""
    assert Masker(known=["Token-AbC1"]).text("token-abc1.example.com") == f"{MASK}.example.com"


def test_lines_of_a_private_key_are_secrets_of_their_own() -> None:
    """A command may print some of them, or number them."""
    key = (
        "-----BEGIN KEY-----\nMIIEvQIBADANBgkqhkiG9w0\nshort\nAQEFAASCBKcwggSj\n-----END KEY-----\n"
    )
    masked = Masker(known=[key]).text("  2\tMIIEvQIBADANBgkqhkiG9w0\n  3\tshort\n")
    assert masked == f"  2\t{MASK}\n  3\tshort\n"


def test_a_longer_secret_goes_whole() -> None:
    """Where one secret is part of another, nothing of the longer one stays."""
    assert Masker(["token-1", "token-1-and-more"]).text("token-1-and-more") == MASK


def test_short_values_are_part_of_any_text() -> None:
    """What has fewer than six characters masks nothing."""
    assert Masker(["none", "12345", ""]).text("none of 12345") == "none of 12345"


def test_a_text_without_secrets_is_the_same_object() -> None:
    """So masking costs next to nothing where there is nothing to mask."""
    text = "nothing " * 10
    assert Masker([SECRET]).text(text) is text


def test_it_never_forgets() -> None:
    """A key that was replaced is still a secret."""
    masker = Masker(["first-key"])
    masker.learn(["second-key"])
    assert masker.text("first-key second-key") == f"{MASK} {MASK}"


def test_values_are_masked_throughout() -> None:
    """JSON values are masked at any depth, keys too."""
    value = {"a": ["my-secret", 1, None, {"my-secret": True}]}
    assert Masker(["my-secret"]).value(value) == {"a": [MASK, 1, None, {MASK: True}]}


@pytest.mark.parametrize("kept", range(1, len("s3cret-value")))
def test_half_a_secret_at_a_cut_goes_too(kept: int) -> None:
    """What a cut left of a secret is left out, on both sides."""
    secret = "s3cret-value"
    masker = Masker([secret])
    assert masker.before_cut(f"text {secret[:kept]}") == "text "
    assert masker.after_cut(f"{secret[kept:]} text") == " text"


def test_names_give_secrets_away() -> None:
    """Headers, parameters and fields whose names give secrets away,
    and headers that only look like it.
    """
    assert all(map(names_secret, ("X-Api-Key", "authorization", "sig", "Cookie", "MY_PASSWORD")))
    assert not any(map(names_secret, ("X-Title", "HTTP-Referer", "api-version", "seed")))
    assert list(named({"a": {"token": ["x", {"b": "y"}]}, "c": "z"})) == ["x", "y"]
    fields = {"passphrase": "p", "db_pwd": "q", "pwd": "r", "Bearer": "s", "session": "t"}
    assert list(named(fields)) == ["p", "q", "r", "s", "t"]
    assert not any(map(names_secret, ("PWD", "OLDPWD", "DBUS_SESSION_BUS_ADDRESS")))
    assert looks("hunter2-hunter2")
    assert not any(map(looks, ("frontend", "https-only", "20261125", "two words1", "a1")))
