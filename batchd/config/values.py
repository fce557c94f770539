"""The values of all sections: their kinds, how strictly they are read, and what hosts are."""

from __future__ import annotations

import ipaddress
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
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
_NEVER = "never"
_MAX_FALLBACK_S = 10**9
_HIGHEST_PORT = 65535


class Section:
    """The pydantic settings of every section: no unknown keys, no guessing at types, no NaN."""

    __slots__ = ()
    __pydantic_config__: ClassVar[dict[str, Any]] = {
        "extra": "forbid",
        "strict": True,
        "allow_inf_nan": False,
        "serialize_by_alias": True,
    }


@dataclass(frozen=True, slots=True, eq=False)  # a hash of its own: the schema has none
class _Kind:
    """How a value is read, with one complaint for all that is wrong; gives pydantic a schema, and
    imports it only when pydantic asks, so that readers of a configuration need not.
    """

    #: What pydantic calls a complaint.
    name: str
    #: Raises ``ValueError``, with what is wrong.
    read: Callable[[Any], Any]
    schema: dict[str, Any]

    def __get_pydantic_core_schema__(self, _source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> Any:
            try:
                return self.read(value)
            except ValueError as error:
                raise PydanticCustomError(self.name, "{why}", {"why": str(error)}) from None

        return core_schema.no_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return self.schema


def _fallback(value: Any) -> float | str:
    if value == _NEVER:
        return _NEVER
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and math.isfinite(value) and 0 <= value <= _MAX_FALLBACK_S:
        return float(value)
    raise ValueError(
        "it must be 'never', or the seconds after which it goes on at the standard price"
    )


def _reach(value: Any) -> Network:
    return value if isinstance(value, bool) else _listed(value, "true, false or ")


def _listed(value: Any, other: str = "") -> tuple[str, ...]:
    """Return a list of hosts, each as it is compared. Raises ``ValueError``."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"it must be {other}a list of host names")
    return tuple(map(str, hosts.parsed(value)))


_LIST = {"type": "array", "items": {"type": "string"}}
#: When a call whose tier has no room goes on in the standard one:
#: ``never``, or after so many seconds.
Fallback: TypeAlias = Annotated[
    float | Literal["never"],
    _Kind("fallback", _fallback, {"anyOf": [{"const": _NEVER}, {"type": "number", "minimum": 0}]}),
]
#: true, false, or the hosts that may be reached.
Reach: TypeAlias = Annotated[
    bool | tuple[str, ...], _Kind("hosts", _reach, {"anyOf": [{"type": "boolean"}, _LIST]})
]
#: Hosts alone.
HostList: TypeAlias = Annotated[tuple[str, ...], _Kind("hosts", _listed, _LIST)]


def seconds(fallback: float | Literal["never"]) -> float | None:
    """Return after how many seconds a call goes on at the standard price; None: never."""
    return None if isinstance(fallback, str) else fallback


def loopback(host: str) -> bool:
    """Return whether only this machine reaches a host's address."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def parted(place: str) -> tuple[str, int]:
    """Return host and port of ``HOST:PORT``, an address of IPv6 in brackets.

    Raises ``ValueError``.
    """
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.%\w]+\]|[^\s:\[\]/]+):([0-9]{1,5})", place)
    if found is None or int(found[2]) > _HIGHEST_PORT:
        raise ValueError(place)
    found[1].encode("idna")  # it raises for a name of which a part is empty, or too long
    return found[1].strip("[]"), int(found[2])


def is_place(text: str) -> bool:
    """Return whether something is ``HOST:PORT``."""
    try:
        return parted(text)[1] > 0
    except ValueError:
        return False
