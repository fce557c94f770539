"""What vendors demand of a schema that an answer or a call is held to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from standin.simulated_request import InvalidRequestError


def check_strict(schema: Mapping[str, Any] | None, of: str, param: str) -> None:
    """Hold a schema to OpenAI's strict subset. Raises ``InvalidRequestError``."""
    for place, part in objects(schema or {}):
        where = ", ".join(f"'{p}'" for p in place)
        fields = part.get("properties", {})
        if part.get("additionalProperties") is not False:
            wrong = "'additionalProperties' is required to be supplied and to be false."
        elif missing := [f for f in fields if f not in part.get("required", ())]:
            wrong = (
                "'required' is required to be supplied and to be an array including every key in "
                f"properties. Missing '{missing[0]}'."
            )
        else:
            continue
        raise InvalidRequestError(
            f"Invalid schema for {of}: In context=({where}), {wrong}",
            param,
            "invalid_function_parameters" if of.startswith("function") else "invalid_json_schema",
        )


def objects(
    schema: Mapping[str, Any], place: tuple[str, ...] = ()
) -> Iterator[tuple[tuple[str, ...], Mapping[str, Any]]]:
    """Yield all objects in a schema, with their places."""
    if schema.get("type") == "object":
        yield place, schema
        for name, part in schema.get("properties", {}).items():
            yield from objects(part, (*place, "properties", name))
    if isinstance(schema.get("items"), Mapping):
        yield from objects(schema["items"], (*place, "items"))
    for i, part in enumerate(schema.get("anyOf", ())):
        yield from objects(part, (*place, "anyOf", str(i)))
