"""The values of all sections: their kinds, how strictly they are read, and what hosts are."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any, ClassVar, Literal

from annotated_types import MinLen

from batchd import records

#: The dialects; empty: as the preset has it, or chat.
AskedApi = Literal["", records.Api]
Name = Annotated[str, MinLen(1)]


class Section:
    """The pydantic settings of every section: no unknown keys, no guessing at types, no NaN."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "serialize_by_alias": True,
    }


def loopback(host: str) -> bool:
    """Return whether only this machine reaches a host's address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
