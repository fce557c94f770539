"""Failures of calls: how each is classified, and the waits that providers ask of their clients."""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import Any
from urllib.parse import urlsplit

from batchd.masking import MASK, Masker
from batchd.records import Endpoint, Failure, FailureKind, ModelSetup
from batchd.records.models import line, valid

_UNITS: Mapping[str, float] = {"ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_STEP = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)")
#: OpenAI: "Please try again in 6m0s.", Gemini: "Please retry in 34.07s.", "retryDelay": "34s".
_IN_TEXT = re.compile(
    r'(?:try again in|retry in|"retryDelay":\s*")\s*((?:\d+(?:\.\d+)?\s*(?:ms|s|m|h|d)[a-z]*\s*)+)'
)
#: A number above this is a moment since the epoch, not a duration.
_EPOCH_S = 1e9
_EPOCH_MS = 1e12
#: A provider that asks for more, as by mistake, is asked again after a year (seconds).
_MAX_WAIT_S = 365 * 86400.0


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that ``retry-after-ms`` or ``retry-after`` ask for; None: they do not."""
    milliseconds = _float(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return _bounded(milliseconds / 1000)
    return seconds(headers.get("retry-after"))


def until_reset(headers: Mapping[str, str], body: str) -> float | None:
    """Return the seconds until what ran out is there again, after a 429 without Retry-After.

    Only limits whose remaining count is 0, or not given, matter: the others' reset says when they
    will be full, not when there is something left.
    """
    waits = [
        seconds(value)
        for name, value in headers.items()
        if "ratelimit" in name and "reset" in name and _ran_out(headers, name)
    ]
    if known := [w for w in waits if w is not None]:
        return max(known)
    found = _IN_TEXT.search(body)
    return _duration(found.group(1)) if found else None


def _bounded(wait_s: float) -> float:
    return min(max(0.0, wait_s), _MAX_WAIT_S)


def _ran_out(headers: Mapping[str, str], name: str) -> bool:
    remaining = _float(headers.get(name.replace("reset", "remaining")))
    return remaining is None or remaining <= 0


def seconds(value: str | None) -> float | None:
    """Return the seconds that a number, a duration, a moment or a date stand for."""
    if value is None:
        return None
    number = _float(value)
    if number is not None:
        if number >= _EPOCH_MS:
            number = number / 1000 - time.time()
        elif number >= _EPOCH_S:
            number -= time.time()
        return _bounded(number)
    duration = _duration(value)
    return _date(value) if duration is None else duration


def _float(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _duration(value: str) -> float | None:
    """Return the seconds of ``1h2m3s``, ``250ms`` and the like."""
    value = value.strip().lower()
    steps = _STEP.findall(value)
    if not steps or not _STEP.match(value):
        return None
    total = sum(float(number) * _UNITS[unit] for number, unit in steps)
    return _bounded(total) if math.isfinite(total) else None


def _date(value: str) -> float | None:
    """Return the seconds until an HTTP date, or an ISO one (anthropic); UTC if it has no zone."""
    try:
        moment = parsedate_to_datetime(value)
    except (ValueError, TypeError, OverflowError):
        try:
            moment = datetime.fromisoformat(value)
        except ValueError:
            return None
    # In this machine's zone the first and the last days of the calendar would be none.
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return _bounded(moment.timestamp() - time.time())


_SAID = re.compile
#: By the provider's code, type or words; the first that fits counts.
#: Gemini says "exceeded your current quota" of every rate limit, so that only OpenAI's code counts.
_QUOTA = _SAID(
    r"insufficient_quota|insufficient[ _]balance|insufficient[ _](?:credit|fund)|out of credits"
    r"|credit balance is too low|requires more credits|billing_hard_limit|billing_not_active"
    r"|credit_balance_exhausted|(?:organization|project)_(?:spend|usage)_limit_exceeded"
    r"|(?:enforced|contract)_spend_limit_reached|billing_error|linked_organization_"
    r"|reached your specified .{0,80}usage limits"
)
#: Some send it with 403.
_RATE = _SAID(r"rate.?limit (?:is |was )?exceeded|rate_limit_exceeded|too many requests")
_KEY = _SAID(
    r"invalid_api_key|(?:incorrect|invalid) api[ _]key|api[ _]key not valid|api_key_invalid"
)
#: The account itself is shut: no key of it would fare better, and no task.
_ACCOUNT = _SAID(
    r"organization_on_hold|(?:account|organization)_(?:deactivated|disabled|suspended)"
    r"|\b(?:account|organization) (?:is|was|has been) (?:on hold|not active|inactive|deactivated|disabled|suspended)"
)
#: Not of this one request: the account may not.
_FORBIDDEN = _SAID(r"permission_error")
_OVERFLOW = _SAID(
    r"context_length_exceeded|exceed_context_size|maximum context length|context (?:length|size|window)"
    r"|prompt is too long|input is too long|prompt_too_long|exceed context limit"
    r"|exceeds the maximum number of tokens|reduce the length of the (?:messages|prompt)"
    r"|maximum prompt length|exceeded model token limit|exceeds max length|max_new_tokens. must be <="
)
#: How an overflow's message names the window.
_WINDOW = _SAID(
    r"(?:maximum context length (?:is|of)|maximum prompt length is|model token limit:|must be <="
    r"|maximum number of tokens allowed \(|available context size \(|context window of"
    r'|(?:tokens|\d) >|"n_ctx":|per min(?:ute)? \(tpm\): limit)\s*(\d[\d,]{2,9})\b'
    r"|(\d[\d,]{2,9}) maximum context length"
)
#: OpenAI's code for a model that is not there, or not for this account.
_NO_MODEL = "model_not_found"
#: Bytes of an error's body that are read, and characters of its message that are looked at:
#: a few hundred are shown.
_MOST_SAID = 1 << 16
_LOOKED_AT = 4000
#: What HTTP calls an error.
_STATUS = re.compile("[45][0-9][0-9]")
#: A tier, or a server, that has no room for any client's request.
_NO_ROOM = _SAID(r"resource[ _]unavailable|no room|\bcapacity\b")
#: OpenRouter's 404 where the address is right.
_NO_SERVER = "no endpoints found"
#: Longer than the tokens that a minute allows: waiting does not help.
_REQUEST_TOO_LARGE = "request too large"
_FILTER = _SAID(
    r"content_filter|content_policy|content (?:management )?policy|responsibleaipolicy"
    r"|content exists risk|data_inspection_failed|safety system|requires moderation"
    r"|invalid_prompt|bio_policy|misalignment_policy"
)
#: Of a vendor's code or type, what says that another time it works.
_BUSY = _SAID(r"server_error|overloaded|api_error|slow_down|conflict_error")
#: The conversation alone may not be at fault: these say something else for sure.
_PLAIN_STATUS: Mapping[int, FailureKind] = {
    401: FailureKind.AUTH,
    402: FailureKind.QUOTA,
    408: FailureKind.TIMEOUT,
    # Conflict and Too Early: another time it works, and SDKs try again.
    409: FailureKind.OVERLOADED,
    425: FailureKind.OVERLOADED,
    # The gateway gave up on a model that was still at work, which will be billed.
    504: FailureKind.TIMEOUT,
    524: FailureKind.TIMEOUT,
}
_SAYS: Mapping[FailureKind, str] = {
    FailureKind.RATE_LIMITED: "has had too many requests or tokens",
    FailureKind.OVERLOADED: "is overloaded or failing",
    FailureKind.TIMEOUT: "did not answer in time",
    FailureKind.AUTH: "refuses the API key",
    FailureKind.QUOTA: "says that the account has no money or quota left",
    FailureKind.FORBIDDEN: "forbids this request",
    FailureKind.BAD_REQUEST: "refuses the request",
    FailureKind.CONTENT_FILTER: "refuses the content",
    FailureKind.CONTEXT_OVERFLOW: "cannot fit the conversation into its window",
    FailureKind.BAD_ANSWER: "sent no usable answer",
    FailureKind.CONNECTION: "cannot be reached",
    FailureKind.REPLAY: "refuses what it answered before",
    FailureKind.SPARED: "refuses an optional part of the request",
    FailureKind.UNFIT: "takes no tools",
}
_KEY_LIKE = re.compile(
    r"\b(?:sk|pk|gsk|xai|key|AIza)[-_]?[A-Za-z0-9_-]{16,}|Bearer\s+\S+", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class CallPlace:
    """The place of a call, for messages: its provider and model."""

    setup: ModelSetup
    endpoint: Endpoint
    masker: Masker = field(default_factory=Masker)
    #: What is asked for there, for people.
    what: str = "chat completions"

    def __str__(self) -> str:
        return f"{self.setup.name} at {self.endpoint_host}"

    @property
    def endpoint_host(self) -> str:
        """The host and port of the base URL, without a name and password in it."""
        try:
            return urlsplit(self.endpoint.base_url).netloc.rpartition("@")[2]
        except ValueError:
            return "no address"

    @property
    def endpoint_address(self) -> str:
        """The base URL as far as its path, likewise."""
        try:
            parts = urlsplit(self.endpoint.base_url)
        except ValueError:
            return "no address"
        return self.masker.text(f"{parts.scheme}://{self.endpoint_host}{parts.path}")

    def failure(self, kind: FailureKind, detail: str = "", says: str = "", **more: Any) -> Failure:
        """Return a failure whose message says what happened, where, and in whose words."""
        long = len(detail) > _LOOKED_AT
        masked = self.masker.before_cut if long else self.masker.text
        detail = _KEY_LIKE.sub(MASK, masked(valid(detail[:_LOOKED_AT])))
        detail = line(detail).rstrip(".")
        message = f"{self} {says or _SAYS[kind]}"
        return Failure(kind=kind, message=f"{message}: {detail}" if detail else message, **more)

    def unusable(self, detail: str) -> Failure:
        """Return the failure that a body with status 200 is which is no answer."""
        return self.failure(FailureKind.BAD_ANSWER, detail, http_status=HTTPStatus.OK)


def http_failure(place: CallPlace, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Return what an HTTP error says. ``headers`` have lower-case names."""
    text = body[:_MOST_SAID].decode("utf-8", "replace")
    words = _Words.of(text)
    kind, of_model = _kind(status, words), _names(place.setup.model, words)
    if status == 404 and kind is FailureKind.BAD_REQUEST:  # not found
        # Where it is no model, it is the address: every request would learn the same.
        named = of_model or "model" in words.all or _NO_SERVER in words.all
        kind = kind if named else FailureKind.UNFIT
    retry_after_s = retry_after(headers)
    if retry_after_s is None and kind is FailureKind.RATE_LIMITED:
        retry_after_s = until_reset(headers, text)
    limits = {
        name[:100]: line(value, 200)
        for name, value in headers.items()
        if "ratelimit" in name or name.startswith("retry-after")
    }
    return place.failure(
        kind,
        headers.get("location", "") if 300 <= status < 400 else words.message,  # redirects
        says=_says(place, status, kind, words),
        http_status=status,
        retry_after_s=retry_after_s,
        headers=place.masker.value(limits),
        window=_window(words.all + text[:4000]) if kind is FailureKind.CONTEXT_OVERFLOW else 0,
        of_model=of_model,
    )


def error_in_answer(place: CallPlace, error: Any) -> Failure:
    """Return what an error under status 200 says:
    gateways send their own provider's status as its code.
    """
    text = json.dumps({"error": error})
    code = error.get("code") if isinstance(error, dict) else None
    status = int(code) if isinstance(code, int | str) and _STATUS.fullmatch(str(code)) else 0
    if not status:
        return place.unusable(_Words.of(text).message)
    return http_failure(place, status, {}, text.encode())


def coded_failure(place: CallPlace, error: Any) -> Failure:
    """Return the failure that a body with status 200 reports: its code counts, as the status
    does not.
    """
    text = json.dumps({"error": error})
    words = _Words.of(text)
    kind = _kind(HTTPStatus.BAD_REQUEST, words)
    if kind is FailureKind.BAD_REQUEST:
        kind = FailureKind.OVERLOADED if _BUSY.search(words.all) else FailureKind.BAD_ANSWER
    window = _window(words.all) if kind is FailureKind.CONTEXT_OVERFLOW else 0
    return place.failure(kind, words.message, http_status=HTTPStatus.OK, window=window)


@dataclass(frozen=True, slots=True)
class _Words:
    """What a provider says of an error."""

    #: For people.
    message: str
    #: Message, code, type: all of it in lower case, for us.
    all: str

    @classmethod
    def of(cls, text: str) -> _Words:
        """Read the body of an error: OpenAI's form, and what else is seen."""
        try:
            return cls._of(json.loads(text))
        except (ValueError, RecursionError):
            page = text.lstrip().startswith("<")
            return cls("an HTML page" if page else text[:1000], "" if page else text[:1000].lower())

    @classmethod
    def _of(cls, value: Any) -> _Words:
        value = value[0] if isinstance(value, list) and value else value  # Gemini
        error = value.get("error", value) if isinstance(value, dict) else value
        fields = error if isinstance(error, dict) else {"message": error}
        message = fields.get("message") or fields.get("detail") or ""
        # OpenRouter keeps the words of the provider behind it apart.
        metadata = fields.get("metadata")
        raw = metadata.get("raw") if isinstance(metadata, dict) else None
        said = [m if isinstance(m, str) else json.dumps(m) for m in (message, raw) if m]
        codes = [str(fields[key]) for key in ("code", "type", "status") if fields.get(key)]
        # Anthropic's code stands deeper, where there is one.
        details = fields.get("details")
        if isinstance(details, dict) and details.get("error_code"):
            codes.append(str(details["error_code"]))
        return cls(": ".join(said), " ".join([*said, *codes]).lower()[:4000])


def _kind(status: int, words: _Words) -> FailureKind:
    if kind := _PLAIN_STATUS.get(status):
        return kind
    if status == 429 and _REQUEST_TOO_LARGE in words.all:  # too many requests
        return FailureKind.CONTEXT_OVERFLOW
    if status == 429:  # the same
        return FailureKind.QUOTA if _QUOTA.search(words.all) else FailureKind.RATE_LIMITED
    if status >= 500:  # the server's fault, it says
        overflow = "exceed_context_size" in words.all
        return FailureKind.CONTEXT_OVERFLOW if overflow else FailureKind.OVERLOADED
    for pattern, kind in (
        (_RATE, FailureKind.RATE_LIMITED),
        (_QUOTA, FailureKind.QUOTA),
        (_KEY, FailureKind.AUTH),
        (_ACCOUNT, FailureKind.AUTH),
        (_FORBIDDEN, FailureKind.FORBIDDEN),
        (_FILTER, FailureKind.CONTENT_FILTER),
    ):
        if pattern.search(words.all):
            return kind
    if status == 403:  # forbidden
        return FailureKind.FORBIDDEN
    if status == 413 or (status in {400, 422} and _OVERFLOW.search(words.all)):  # content too large
        return FailureKind.CONTEXT_OVERFLOW
    return FailureKind.BAD_REQUEST


def _names(model: str, words: _Words) -> bool:
    """Whether a provider speaks of this one model."""
    name = re.escape(model.lower())
    return _NO_MODEL in words.all or bool(re.search(rf"(?<![\w.-]){name}(?![\w-]|\.\w)", words.all))


def _window(said: str) -> int:
    """Return the window that an overflow's message names, in tokens; 0: it names none."""
    found = _WINDOW.search(said)
    return int((found.group(1) or found.group(2)).replace(",", "")) if found else 0


def _says(place: CallPlace, status: int, kind: FailureKind, words: _Words) -> str:
    if kind is FailureKind.UNFIT:
        where, name = place.endpoint_address, place.setup.provider
        fix = f"set another api, or a base_url that ends before /responses and the like, in [providers.{name}]"
        return f"has no {place.what} under base_url {where}: {fix} (HTTP {status})"
    if (
        status == 404 and kind is FailureKind.BAD_REQUEST and _NO_SERVER not in words.all
    ):  # not found
        return f"does not know the model {place.setup.model!r} (HTTP 404)"
    if kind is FailureKind.RATE_LIMITED and _NO_ROOM.search(words.all):
        return f"has no room for the request (HTTP {status})"
    if kind is FailureKind.AUTH and _ACCOUNT.search(words.all):
        return f"refuses the account (HTTP {status})"
    if 300 <= status < 400:  # redirects
        return f"redirects elsewhere: set base_url to that address (HTTP {status})"
    return f"{_SAYS[kind]} (HTTP {status})"
