"""The questions of ``batchd init``: each answer is looked at when it is given, and asked for again
where it would not work. What is given as an argument is held to the same.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable

from batchd import pricing
from batchd.cli.display import formatting
from batchd.config.constraints import reachable
from batchd.config.providers import PRESETS
from batchd.config.sections import AgentSection, PoolSection
from batchd.log import escape

#: What stands for no key.
_NONE = "none"
_MAX_AGENTS = 1000
_MODEL = re.compile(r"[^\s/]+/\S+")
_VARIABLE = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_SCHEME = re.compile(r"https?://", re.IGNORECASE)
_EXAMPLE = "http://10.0.0.7:8000/v1"
#: What the dialects add to an address by themselves.
_ENDPOINTS = ("/chat/completions", "/responses", "/messages")


def ask_model() -> str:
    """Ask which model does the work."""
    usual = AgentSection().model
    formatting.say(f"batchd knows {', '.join(PRESETS)}; others need an address.")
    return _asked(f"Which model does the work? PROVIDER/MODEL [{usual}]: ", usual, wrong_model)


def ask_address(provider: str) -> str:
    """Ask where a provider is."""
    return _asked(f"Where is {escape(provider)}? As in {_EXAMPLE}: ", "", wrong_address)


def ask_agents() -> int:
    """Ask how many tasks are worked on at a time."""
    usual = str(PoolSection().processes)
    return int(_asked(f"How many tasks at a time? [{usual}]: ", usual, wrong_agents))


def ask_key(provider: str, usual: str, fits: Callable[[str, str], str]) -> tuple[str, str]:
    """Ask where a key is; return the variable, or the file. ``fits`` says what is wrong with them.

    What is answered is not repeated: it may be the key itself.
    """
    formatting.say(
        f"The key of {escape(provider)} is not written down: name a variable, or a file's path."
    )
    while True:
        answer = input(f"Where does it come from? [{usual or _NONE}]: ").strip() or usual
        problem = f"That is no NAME_OF_A_VARIABLE, no path with a slash in it, and not {_NONE}"
        if found := _key(answer):
            problem = fits(*found)
            if not problem:
                return found
        formatting.say(f"{problem}.")


def file(path: str) -> str:
    """Return a path as config.toml has it: one of the home's own stays that."""
    return path if path.startswith("~/") else os.path.abspath(path)  # no link is followed


def _key(answer: str) -> tuple[str, str] | None:
    if answer in {"", _NONE}:
        return "", ""
    if "/" in answer:
        return "", file(answer)
    # Who gives the key itself is not to find it in a file that others may read.
    if _VARIABLE.fullmatch(answer) and (answer.isupper() or answer in os.environ):
        return answer, ""
    return None


def wrong_model(model: str) -> str:
    """Return what to write in place of a model's bare name: who sells it stands before it;
    empty: nothing is wrong.
    """
    if _MODEL.fullmatch(model):
        return ""
    sold = [f"{seller}/{model}" for seller in PRESETS if model in pricing.names(seller)]
    return f"it is PROVIDER/MODEL, as in {sold[0] if sold else AgentSection().model}"


def wrong_address(url: str) -> str:
    """Return why a provider cannot be reached by an address; empty: it can, as far as it shows."""
    if not url:
        return f"an address is needed, as in {_EXAMPLE}"
    if "@" in url.partition("?")[0]:
        return "leave user and password out of it: the key is asked for apart"
    if not _SCHEME.match(url):
        begun = "" if "://" in url else f": write http://{url}, or https://"
        return f"it must begin with http:// or https://{begun}"
    if not reachable(url):
        return f"it must be http(s)://HOST[:PORT]/PATH, as in {_EXAMPLE}"
    ending = next((e for e in _ENDPOINTS if url.rstrip("/").endswith(e)), "")
    return ending and f"leave {ending} out: batchd adds it"


def wrong_agents(answer: str) -> str:
    """Return why that is no number of tasks at a time; empty: it is one."""
    number = answer.isascii() and answer.isdecimal() and 1 <= int(answer[:5]) <= _MAX_AGENTS
    return "" if number else f"it is a number from 1 to {_MAX_AGENTS:,}"


def _asked(question: str, usual: str, wrong: Callable[[str], str]) -> str:
    """Ask until nothing is wrong with the answer."""
    while True:
        answer = input(question).strip() or usual
        problem = wrong(answer)
        if not problem:
            return answer
        shown = f"{escape(answer)}: " if answer and "@" not in answer else "It does not work: "
        formatting.say(f"{shown}{problem}.")
