"""Service tiers: how pydantic reads ``service_tier`` and ``tier_fallback``."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
    from pydantic_core import CoreSchema

_NEVER = "never"
_MAX_FALLBACK_S = 10**9


class _Fallback:
    """Gives pydantic a schema; imports it only when pydantic asks,
    so that readers of a configuration need not.
    """

    def __get_pydantic_core_schema__(self, _source: Any, _: GetCoreSchemaHandler) -> CoreSchema:
        from pydantic_core import PydanticCustomError, core_schema

        def read(value: Any) -> float | str:
            if value == _NEVER:
                return _NEVER
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if number and math.isfinite(value) and 0 <= value <= _MAX_FALLBACK_S:
                return float(value)
            why = "it must be 'never', or the seconds after which it goes on at the standard price"
            raise PydanticCustomError("fallback", "{why}", {"why": why})

        return core_schema.no_info_plain_validator_function(read)

    def __get_pydantic_json_schema__(
        self, _: CoreSchema, __: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        return {"anyOf": [{"const": _NEVER}, {"type": "number", "minimum": 0}]}


#: When a call whose tier has no room goes on in the standard one:
#: ``never``, or after so many seconds.
Fallback: TypeAlias = Annotated[float | Literal["never"], _Fallback()]


def seconds(fallback: float | Literal["never"]) -> float | None:
    """Return after how many seconds a call goes on at the standard price; None: never."""
    return None if isinstance(fallback, str) else fallback
