"""Presets: the usual providers, known without any configuration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from batchd.records import Api

#: The dialects that presets speak at their own addresses; the others speak chat completions.
APIS: Mapping[str, Api] = {"openai": "responses", "anthropic": "messages"}
#: A ``[providers.NAME]`` table overrides it key by key.
PRESETS: Mapping[str, Mapping[str, Any]] = {
    "openai": {
        "base_url": "https://api.openai.com/v1",
        "api_key_env": "OPENAI_API_KEY",
        "output_limit_field": "max_completion_tokens",
    },
    "deepseek": {
        "base_url": "https://api.deepseek.com/v1",
        "api_key_env": "DEEPSEEK_API_KEY",
        "json_mode": "json_object",
    },
    "openrouter": {
        "base_url": "https://openrouter.ai/api/v1",
        "api_key_env": "OPENROUTER_API_KEY",
    },
    "anthropic": {
        "base_url": "https://api.anthropic.com/v1",
        "api_key_env": "ANTHROPIC_API_KEY",
    },
    "ollama": {"base_url": "http://127.0.0.1:11434/v1", "max_concurrent": 4},
    # llama.cpp's server, vLLM and the like.
    "local": {"base_url": "http://127.0.0.1:8080/v1", "max_concurrent": 4},
}
