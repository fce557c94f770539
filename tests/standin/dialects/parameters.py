"""What Anthropic's Messages demands of a request's parameters, model by model."""

from __future__ import annotations

from collections.abc import Mapping

from standin import families
from standin.dialects import schema_rules
from standin.dialects.message_body import MessagesBody
from standin.families import Family
from standin.simulated_request import InvalidRequestError

#: The first takes sampling parameters, the second does not.
_VERSIONS = ("2023-06-01", "2026-10-21")
_LEAST_BUDGET = 1024


def check(body: MessagesBody, family: Family, headers: Mapping[str, str]) -> None:
    """Hold a request's parameters to what its model takes. Raises ``InvalidRequestError``."""
    version = headers.get("anthropic-version")
    if version is None:
        raise InvalidRequestError("header is required", "anthropic-version")
    if version not in _VERSIONS:
        raise InvalidRequestError(f'"{version}" is not a valid version', "anthropic-version")
    for field in ("temperature", "top_p", "top_k"):
        if version != _VERSIONS[0] and getattr(body, field) is not None:
            raise InvalidRequestError("Extra inputs are not permitted", field)
    if body.max_tokens < 1:
        raise InvalidRequestError("Input should be greater than or equal to 1", "max_tokens")
    _check_output(body, family)
    _check_thinking(body, family)
    choice = body.tool_choice.type if body.tool_choice else "auto"
    if choice in {"any", "tool"} and not family.forced:
        raise InvalidRequestError(
            "Forcing a tool is not supported with this model: use auto or none", "tool_choice.type"
        )
    if choice != "auto" and not body.tools:
        raise InvalidRequestError("may only be specified while providing tools", "tool_choice")


def _check_output(body: MessagesBody, family: Family) -> None:
    config = body.output_config
    if config is None:
        return
    if config.effort is not None and config.effort not in family.efforts:
        takes = ", ".join(f"'{e}'" for e in families.EFFORTS if e in family.efforts)
        raise InvalidRequestError(f"Input should be {takes}", "output_config.effort")
    if config.format is not None:
        for _, part in schema_rules.objects(config.format.schema):
            if part.get("additionalProperties") is not False:
                raise InvalidRequestError(
                    "For 'object' type, 'additionalProperties' must be explicitly set to false",
                    "output_config.format.schema",
                )


def _check_thinking(body: MessagesBody, family: Family) -> None:
    thinking = body.thinking
    if thinking is None:
        return
    if thinking.type not in family.thinking:
        raise InvalidRequestError(
            f"'{thinking.type}' is not supported with this model", "thinking.type"
        )
    effort = (body.output_config and body.output_config.effort) or family.effort
    at = families.EFFORTS.index
    if thinking.type == "disabled" and at(effort) > at(family.disabled_to):
        raise InvalidRequestError(
            f"'disabled' is not supported with effort above {family.disabled_to}", "thinking.type"
        )
    budget = thinking.budget_tokens
    if (budget is None) == (thinking.type == "enabled"):
        text = "Field required" if budget is None else "Extra inputs are not permitted"
        raise InvalidRequestError(text, "thinking.budget_tokens")
    if budget is not None and not _LEAST_BUDGET <= budget < body.max_tokens:
        raise InvalidRequestError(
            "must be at least 1024, and `max_tokens` must be greater than it",
            "thinking.budget_tokens",
        )
