"""The model client: one call to a provider becomes an ``Answer`` or a classified ``Failure``.

It decides nothing: whether to try again, wait, park or give up is the governor's business.
"""

from __future__ import annotations

from batchd.llm.dialect import ModelRequest as ModelRequest
from batchd.llm.exchange import tls as tls, transport as transport
from batchd.llm.model_client import ModelClient as ModelClient
