"""The masker: takes secrets out of texts before they leave. One knows them all.

What is masked are values, wherever they stand: as they are, as JSON or a URL writes them, and, for
what commands know, in lower case as the names of hosts are, line by line, and in base64, in lines
or not. A value of fewer than ``MIN_SECRET_CHARS`` characters is part of any text,
and is not masked; no task may call one a secret.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar
from urllib.parse import quote, quote_plus

T = TypeVar("T")

#: What stands in a secret's place.
MASK = "[secret]"
#: Shorter values are not masked.
MIN_SECRET_CHARS = 6
#: Lines of a secret that are secrets of their own, such as those of a private key.
_LEAST_LINE = 12
#: What JSON and URLs write as it is: most keys are nothing else.
_PLAIN = re.compile(r"[A-Za-z0-9_.~-]*")
#: A letter as a URL writes it.
_HEX = re.compile("%[0-9A-F]{2}")
#: What stands between the letters of base64 in lines, also where JSON writes them.
_BETWEEN = re.compile(r"(?:\s|\\[nrt])+")
#: Of two parts of this length, one is whole in any base64:
#: no line of it is shorter than both together.
_PART = 28
#: What a key, a header, a parameter is called whose value is a secret.
_NAMES = re.compile(
    r"key|token|secret|auth|passw|credential|cookie|signature|\bsig\b|\bcode\b", re.IGNORECASE
)
#: What else a field or a header of a configuration is called;
#: variables of a session's own are called so, too.
_FIELDS = re.compile(r"passphrase|pwd\b|bearer|session", re.IGNORECASE)

#: One word of letters and digits together: what could be a key, whatever it is called.
_KEY_LIKE = re.compile(r"(?=\S*\d)(?=\S*[A-Za-z])\S{8,}")


def looks(value: str) -> bool:
    """Return whether a value could be a key, and is not a mere word that texts are full of."""
    return bool(_KEY_LIKE.fullmatch(value))


def names_secret(name: str) -> bool:
    """Return whether what goes by this name is a secret: ``X-Api-Key``, ``token``, ``Cookie``."""
    return bool(_NAMES.search(name))


def named(value: Any, *, secret: bool = False) -> Iterator[str]:
    """Yield the texts in a JSON value under names of secrets, ``passphrase`` too."""
    if isinstance(value, str) and secret:
        yield value
    elif isinstance(value, Mapping):
        for name, below in value.items():
            yield from named(
                below, secret=secret or names_secret(name) or bool(_FIELDS.search(name))
            )
    elif isinstance(value, list | tuple):
        for below in value:
            yield from named(below, secret=secret)


class Masker:
    """The masker of secrets. It may learn more, and never forgets one."""

    __slots__ = ("_encoded", "_needles", "_parts", "_pattern")

    def __init__(self, values: Iterable[str] = (), *, known: Iterable[str] = ()) -> None:
        """``known``: secrets that commands know, and so may print in other forms."""
        #: The longest first: where one is part of another, all of it goes.
        self._needles: tuple[str, ...] = ()
        self._pattern: re.Pattern[str] = re.compile("(?!)")
        #: Those in base64, and what at least one of stands in any text that holds one.
        self._encoded: tuple[str, ...] = ()
        self._parts: tuple[str, ...] = ()
        self.learn(values, known=known)

    def learn(self, values: Iterable[str] = (), *, known: Iterable[str] = ()) -> None:
        """Know more secrets from now on."""
        known = tuple(known)
        forms = {form for value in values for form in _written(value)}
        forms.update(form for value in known for form in _printed(value))
        needles = {form for form in forms if len(form) >= MIN_SECRET_CHARS}.union(self._needles)
        if len(needles) != len(self._needles):
            self._needles = tuple(sorted(needles, key=lambda n: (-len(n), n)))
            self._pattern = re.compile("|".join(map(re.escape, self._needles)))
        encoded = {
            form for value in known for form in _encoded(value) if len(form) >= MIN_SECRET_CHARS
        }
        self._encoded = tuple(encoded.union(self._encoded))
        self._parts = tuple({part for form in self._encoded for part in _parts(form)})

    def text(self, text: str) -> str:
        """Return ``text`` without secrets."""
        # Much faster than the pattern, and nearly always the end of it.
        for needle in self._needles:
            if needle in text:
                text = self._pattern.sub(MASK, text)
                break
        for part in self._parts:
            if part in text:
                # Base64 may be in lines.
                letters, places = _letters(text)
                spans = sorted(
                    (places[start], places[start + len(form) - 1] + 1)
                    for form in self._encoded
                    for start in _found(letters, form)
                )
                kept, end = [], 0
                for start, behind in spans:
                    if start >= end:
                        kept += [text[end:start], MASK]
                    end = max(end, behind)
                return "".join((*kept, text[end:]))
        return text

    def value(self, value: T) -> T:
        """Return a JSON value without secrets in its texts, keys included."""
        masked: Any = value
        if isinstance(value, str):
            masked = self.text(value)
        elif isinstance(value, Mapping):
            masked = {self.value(k): self.value(v) for k, v in value.items()}
        elif isinstance(value, list | tuple):
            masked = type(value)(self.value(v) for v in value)
        return masked  # type: ignore[no-any-return]

    def before_cut(self, text: str) -> str:
        """Return ``text``, which was cut off, without secrets,
        and without the beginning of one at its end.
        """
        text = self.text(text)
        ends = (n for s in self._needles for n in range(1, len(s)) if text.endswith(s[:n]))
        return text[: len(text) - max(*ends, self._begun(text), 0)]

    def after_cut(self, text: str) -> str:
        """Return ``text``, whose beginning was cut off, without secrets,
        and without the end of one at its start.
        """
        text = self.text(text)
        starts = (n for s in self._needles for n in range(1, len(s)) if text.startswith(s[-n:]))
        return text[max(*starts, self._rest(text), 0) :]

    def _begun(self, text: str) -> int:
        """Return how much at a text's end is the beginning of base64 of a secret."""
        longest = max(map(len, self._encoded), default=0)
        text = text[max(0, len(text) - 2 * longest) :]
        letters, places = _letters(text)
        ends = (n for s in self._encoded for n in range(1, len(s)) if letters.endswith(s[:n]))
        begun = max(ends, default=0)
        return len(text) - places[-begun] if begun else 0

    def _rest(self, text: str) -> int:
        """Return how much at a text's start is the end of base64 of a secret."""
        longest = max(map(len, self._encoded), default=0)
        letters, places = _letters(text[: 2 * longest])
        starts = (n for s in self._encoded for n in range(1, len(s)) if letters.startswith(s[-n:]))
        rest = max(starts, default=0)
        return places[rest - 1] + 1 if rest else 0


def _written(value: str) -> Iterator[str]:
    """Yield a value as it is, and as JSON, JSON within JSON and URLs write it;
    mostly they are the same.
    """
    value = value.strip()
    yield value
    if _PLAIN.fullmatch(value):
        return  # a task's agent makes a masker as it starts
    for once in _json(value):
        yield once
        for twice in _json(once):
            yield twice
            yield from _json(twice)
    for way in (
        quote(value, errors="replace"),
        quote(value, safe="", errors="replace"),
        quote_plus(value, errors="replace"),
    ):
        yield way
        yield _HEX.sub(lambda found: found[0].lower(), way)


def _json(value: str) -> Iterator[str]:
    """Yield a text as JSON writes it: letters beyond ASCII,
    and the slash, as themselves or escaped.
    """
    for text in (json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
        yield text
        yield text.replace("/", "\\/")


def _printed(value: str) -> Iterator[str]:
    """Yield the forms in which commands print a value,
    its lines among them, and hosts that are called after it.
    """
    yield from _written(value)
    yield value.strip().lower()
    lines = value.splitlines()
    if len(lines) > 1:
        for line in lines:
            if len(line.strip()) >= _LEAST_LINE:
                yield from _written(line)


def _encoded(value: str) -> Iterator[str]:
    """Yield a value in base64, wherever it begins in what is encoded."""
    data = value.strip().encode("utf-8", "surrogatepass")
    for ahead in range(3):
        # Six bits a letter: what depends on the neighbours is left out at both ends.
        encoded = base64.b64encode(bytes(ahead) + data)
        whole = encoded[-(-ahead * 8 // 6) : (ahead + len(data)) * 8 // 6].decode()
        yield whole
        yield whole.translate(str.maketrans("+/", "-_"))


def _parts(form: str) -> tuple[str, str]:
    """Return the first two parts of a form in base64,
    one of which is whole wherever its lines end.
    """
    length = min(_PART, len(form) // 2)
    return form[:length], form[length : 2 * length]


def _letters(text: str) -> tuple[str, list[int]]:
    """Return a text without what may stand between its lines,
    and for each letter where it stood.
    """
    letters: list[str] = []
    places: list[int] = []
    end = 0
    for between in _BETWEEN.finditer(text):
        letters.append(text[end : between.start()])
        places += range(end, between.start())
        end = between.end()
    letters.append(text[end:])
    places += range(end, len(text))
    return "".join(letters), places


def _found(text: str, form: str) -> Iterator[int]:
    """Yield where a form stands in a text."""
    at = text.find(form)
    while at >= 0:
        yield at
        at = text.find(form, at + len(form))
