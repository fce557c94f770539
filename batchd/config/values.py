"""The values of all sections: their kinds, how strictly they are read, and what hosts are."""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, TypeAlias

from annotated_types import MinLen

from batchd import records
from batchd.records import Network, hosts

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

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


class _Read:
    """Gives pydantic a schema, with one complaint for all that is wrong;
    imports it only when pydantic asks, so that readers of a configuration need not.
    """

    def __init__(self, kind: str, read: Callable[[Any], object], schema: dict[str, Any]) -> None:
        """``kind`` of complaint; ``read`` raises ``ValueError``; ``schema`` in JSON."""
        self._kind, self._read, self._schema = kind, read, schema

    def __get_pydantic_core_schema__(self, _source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> object:
            try:
                return self._read(value)
            except ValueError as error:
                raise PydanticCustomError(self._kind, "{why}", {"why": str(error)}) from None

        return core_schema.no_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self._schema


def _reach(value: Any, *, yes: bool) -> Network:
    """Return a list of hosts, each as it is compared; ``yes``: or all of them, or none."""
    if yes and isinstance(value, bool):
        return value
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"it must be {'true, false or ' if yes else ''}a list of host names")
    return tuple(map(str, hosts.parsed(value)))


def _fallback(value: Any) -> float | str:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if value == _NEVER or (number and math.isfinite(value) and 0 <= value <= _MAX_FALLBACK_S):
        return float(value) if number else _NEVER
    raise ValueError(
        "it must be 'never', or the seconds after which it goes on at the standard price"
    )


def seconds(fallback: float | Literal["never"]) -> float | None:
    """Return after how many seconds a call goes on at the standard price; None: never."""
    return None if isinstance(fallback, str) else fallback


_NEVER = "never"
_MAX_FALLBACK_S = 10**9
_HOSTS = {"type": "array", "items": {"type": "string"}}
#: true, false, or the hosts that may be reached.
Reach: TypeAlias = Annotated[
    bool | tuple[str, ...],
    _Read("hosts", partial(_reach, yes=True), {"anyOf": [{"type": "boolean"}, _HOSTS]}),
]
#: Hosts alone.
HostList: TypeAlias = Annotated[tuple[str, ...], _Read("hosts", partial(_reach, yes=False), _HOSTS)]
#: When a call whose tier has no room goes on in the standard one:
#: ``never``, or after so many seconds.
Fallback: TypeAlias = Annotated[
    float | Literal["never"],
    _Read("fallback", _fallback, {"anyOf": [{"const": _NEVER}, {"type": "number", "minimum": 0}]}),
]
