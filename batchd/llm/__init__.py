"""The model client: one call to a provider becomes an ``Answer`` or a classified ``Failure``.

It decides nothing: whether to try again, wait, park or give up is the governor's business.
"""

from __future__ import annotations

from batchd.llm.client import ModelClient
from batchd.llm.exchange import tls
from batchd.llm.request import Request

__all__ = ["ModelClient", "Request", "tls"]
