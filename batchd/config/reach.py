"""The key ``network``, as pydantic reads it:
true, false or a list of hosts, with one complaint for all that is wrong.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

from batchd.records import Network, hosts

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema


class _Read:
    """Gives pydantic a schema; imports it only when pydantic asks,
    so that readers of a configuration need not.
    """

    def __init__(self, *, yes: bool) -> None:
        self._yes = yes

    def __get_pydantic_core_schema__(self, _source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> Network:
            if self._yes and isinstance(value, bool):
                return value
            try:
                return _listed(value, yes=self._yes)
            except ValueError as error:
                raise PydanticCustomError("hosts", "{why}", {"why": str(error)}) from None

        return core_schema.no_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        some = {"type": "array", "items": {"type": "string"}}
        return {"anyOf": [{"type": "boolean"}, some]} if self._yes else some


def _listed(value: Any, *, yes: bool) -> tuple[str, ...]:
    """Return a list of hosts, each as it is compared. Raises ``ValueError``."""
    if not isinstance(value, list | tuple) or not all(isinstance(item, str) for item in value):
        raise ValueError(f"it must be {'true, false or ' if yes else ''}a list of host names")
    return tuple(map(str, hosts.parsed(value)))


#: true, false, or the hosts that may be reached.
Reach: TypeAlias = Annotated[bool | tuple[str, ...], _Read(yes=True)]
#: Hosts alone.
HostList: TypeAlias = Annotated[tuple[str, ...], _Read(yes=False)]
