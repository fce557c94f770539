"""The request for a provider's list of models:
it costs nothing, and shows whether address and key are right.
"""

from __future__ import annotations

import http.client
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace

from batchd.catalog import ModelListing, house, listing
from batchd.masking import Masker
from batchd.records import Endpoint

#: How long a provider may take to answer in all, in seconds.
PATIENCE_S = 10.0
#: Bytes of an answer that are read.
_MAX_ANSWER_BYTES = 16 << 20
_CHUNK = 1 << 16
#: Anthropic's own API asks for it, and takes as many models in one page.
_ANTHROPIC = {"anthropic-version": "2023-06-01"}
_PAGE = 1000
_MOVED = range(300, 400)


@dataclass(frozen=True, slots=True)
class NoListing:
    """The reason why there is no list."""

    #: For people, without secrets; empty: what it answers is no list of models.
    why: str = ""
    #: The HTTP status that it answered with; 0: it did not answer.
    status: int = 0
    #: Where it says that the list is instead.
    moved_to: str = ""


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirect: it would take the key along to wherever that leads."""

    def redirect_request(self, *_: object) -> None:
        return None


def ask(endpoint: Endpoint, patience_s: float = PATIENCE_S) -> ModelListing | NoListing:
    """Return the models that a provider lists, or why there is no list. Blocks; raises nothing."""
    deadline = time.monotonic() + patience_s
    if not endpoint.base_url.startswith(("http://", "https://")):
        return NoListing(f"{endpoint.base_url} is not an address")
    try:
        return listing(_get(endpoint, deadline)) or NoListing(status=200)
    except urllib.error.HTTPError as error:
        error.close()
        where = error.headers.get("Location", "") if error.code in _MOVED else ""
        where = Masker(endpoint.secrets()).text(where.partition("?")[0])
        return NoListing(f"HTTP {error.code}", error.code, where)
    except (OSError, ValueError, http.client.HTTPException) as error:
        why = getattr(error, "reason", error)
        why = "no answer in time" if isinstance(why, TimeoutError) else why
        return NoListing(Masker(endpoint.secrets()).text(str(why)))


def keeps_from_strangers(endpoint: Endpoint, patience_s: float = PATIENCE_S) -> bool:
    """Return whether a provider refuses its list without the key: else the list has not tried it.

    False too where that cannot be seen. Blocks; raises nothing.
    """
    try:
        _get(replace(endpoint, api_key=""), time.monotonic() + patience_s)
    except urllib.error.HTTPError as error:
        error.close()
        return 400 <= error.code < 500 and error.code != 429  # too many requests
    except (OSError, ValueError, http.client.HTTPException):
        return False
    return False


def _get(endpoint: Endpoint, deadline: float) -> bytes:
    """Return the body of an answer. Raises ``OSError``, ``ValueError`` and ``HTTPException``."""
    native = house("", endpoint.base_url) == "anthropic"
    headers = {"User-Agent": "batchd", **(_ANTHROPIC if native else {}), **endpoint.headers}
    if endpoint.api_key and native:
        headers["x-api-key"] = endpoint.api_key
    elif endpoint.api_key:
        headers["Authorization"] = f"Bearer {endpoint.api_key}"
    address = endpoint.address("models")
    if native:
        address += f"{'&' if '?' in address else '?'}limit={_PAGE}"
    request = urllib.request.Request(address, headers=headers)  # noqa: S310 (the scheme was checked)
    left_s = deadline - time.monotonic()
    if left_s <= 0:
        raise TimeoutError
    body = bytearray()
    with urllib.request.build_opener(_Stay).open(request, timeout=left_s) as answer:
        while chunk := answer.read1(_CHUNK):
            body += chunk
            # One that drips keeps each single read within its time.
            if time.monotonic() > deadline:
                raise TimeoutError
            if len(body) > _MAX_ANSWER_BYTES:
                raise ValueError("its list of models is too long")
    return bytes(body)
