"""What a single failure says: whether the model is there at all."""

from __future__ import annotations

import pytest

from batchd.governor.outages import parking
from batchd.records import Cause, Failure, FailureKind

_BAD, _FORBIDDEN = FailureKind.BAD_REQUEST, FailureKind.FORBIDDEN


@pytest.mark.parametrize(
    ("kind", "status", "of_model", "words", "gone"),
    [
        # OpenAI, Gemini, xAI and vLLM: 404 that names it;
        # OpenAI: 403 where the account may not have it.
        (_BAD, 404, True, "The model `m` does not exist or you do not have access to it", True),
        (_FORBIDDEN, 403, True, "Project `p` does not have access to model `m`", True),
        (_FORBIDDEN, 403, False, "forbidden", False),
        # Anthropic and Ollama.
        (_BAD, 404, True, "model: claude-3-opus-20240229", True),
        (_BAD, 404, False, 'model "qwen3" not found, try pulling it first', True),
        # DeepSeek, OpenRouter, Mistral, Groq.
        (_BAD, 400, False, "Model Not Exist", True),
        (_BAD, 400, True, "x/y is not a valid model ID", True),
        (_BAD, 400, False, "Invalid model: m", True),
        (_BAD, 400, True, "The model `m` has been decommissioned and is no longer supported", True),
        # A wrong address, and what models refuse although they are there.
        (_BAD, 404, False, "has no chat completions under base_url h (HTTP 404)", False),
        (
            _BAD,
            400,
            True,
            "Unsupported value: 'temperature' does not support 0 with this model",
            False,
        ),
        (_BAD, 400, True, "Function tools with reasoning_effort are not supported for m", False),
        (_BAD, 400, False, "The file was not found", False),
        (FailureKind.CONTENT_FILTER, 400, True, "unknown model", False),
        (FailureKind.OVERLOADED, 503, True, "model not found", False),
    ],
)
def test_a_model_that_is_not_there_is_distinguished_from_a_request_that_is_refused(
    kind: FailureKind, status: int, words: str, *, of_model: bool, gone: bool
) -> None:
    """In each provider's own words:
    the one holds all tasks of the model, the other ends the one task.
    """
    failure = Failure(
        kind=kind, message=f"p/m at h refuses it: {words}", http_status=status, of_model=of_model
    )
    assert parking(failure, 60.0) == (Cause.GONE if gone else None)
