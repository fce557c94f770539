"""The four tools, and the calls of them that a model writes as text.

Each runs as a process in the sandbox: this process never touches the task's files itself.

Calls in text come in two ways, both strict about the whole answer, so that an answer which only
talks about tool calls makes none: the text protocol (one fenced bash block), and call objects
written out by models that know of native calls but do not make them (seen with qwen2.5-coder behind
llama.cpp).
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from msgspec import structs

from batchd.agent import prompts
from batchd.agent.seen import FileObserver
from batchd.events import ToolOutcome
from batchd.records import Answer, ToolCall, ToolName, ToolProtocol
from batchd.records.models import valid
from batchd.sandbox import CommandEnd, Workplace
from batchd.taskstate import FinishedCommand

#: What programs say that find the end of their input: of Python, Ruby, Java.
_NO_INPUT = (
    "EOFError: EOF when reading a line",
    "\nEOFError\n",
    "end of file reached (EOFError)",
    "NoSuchElementException: No line found",
)
#: bash's warning of a here-document that nothing ends,
#: as it is where a model ends its block instead.
_OPEN_DOCUMENT = re.compile(
    r"^/bin/bash: line \d+: warning: here-document at line (\d+) delimited by end-of-file \(wanted `(.*)'\)$",
    re.MULTILINE,
)
#: What shells say of a browser that is not there, and programs of a screen.
_NO_SCREEN = re.compile(
    r"^\S*sh: (?:line )?\d+: (?:firefox|google-chrome(?:-stable)?|chrome|chromium(?:-browser)?|xdg-open|open"
    r"|sensible-browser): (?:command )?not found$"
    r"|No such file or directory: '(?:xdg-open|firefox|google-chrome|chromium)'"
    r"|no display name and no \$DISPLAY environment variable|no method available for opening"
    r"|[Cc](?:annot|an't) open (?:X )?display|[Uu]nable to open X display|[Cc]ould not connect to display"
    r"|No available video device|failed tty get$|^open terminal failed: ",
    re.MULTILINE,
)


#: What shells and programs say of an editor, and of what needs rights that no command has.
_ABSENT = r"^\S*sh: (?:line )?(?:\d+: )?(?:%s): (?:command )?not found$"
_NO_EDITOR = re.compile(
    _ABSENT
    % "nano|pico|vim?|nvim|emacs|ed|code|subl"
    + r"|^Vim: Warning: Output is not to a terminal"
    r"|^Error opening terminal: |EDITOR unset$|^visudo: no editor found",
    re.MULTILINE,
)
_NO_RIGHTS = re.compile(
    _ABSENT % "sudo|su|doas|apt|apt-get|yum|dnf|apk|pacman|brew" + r"|^sudo: |^su: "
    r"|are you root\?|^E: (?:Could not open lock file|Unable to locate package|List directory)",
    re.MULTILINE,
)


def instead(output: str) -> str:
    """Return what there is in the place of what a command that failed wanted; empty: nothing."""
    if _NO_EDITOR.search(output):
        return prompts.NO_EDITOR
    return prompts.NO_RIGHTS if _NO_RIGHTS.search(output) else ""


def wants_screen(output: str) -> bool:
    """Return whether a command that failed wanted to show something."""
    return _NO_SCREEN.search(output) is not None


def in_words(command: str, output: str) -> str:
    """Return an output with bash's warning of a here-document
    that nothing ends in words that a model does not mistake.
    """
    return _OPEN_DOCUMENT.sub(prompts.OPEN_DOCUMENT, output) if "<<" in command else output


#: Each tool's arguments: name to type, and which must be there.
_ARGUMENTS: Mapping[ToolName, tuple[Mapping[str, type], frozenset[str]]] = {
    "shell": ({"command": str}, frozenset({"command"})),
    "read_file": ({"path": str, "start": int, "lines": int}, frozenset({"path"})),
    "write_file": ({"path": str, "content": str}, frozenset({"path", "content"})),
    "edit_file": ({"path": str, "old": str, "new": str}, frozenset({"path", "old", "new"})),
}
#: Done again when a crash leaves it in doubt;
#: the others may have an effect that must not happen twice.
REPEATABLE: frozenset[ToolName] = frozenset({"read_file", "write_file"})
#: A file larger than this is edited with commands (bytes).
_EDITABLE = 4 << 20
#: Python refuses to write numbers of thousands of digits, and tools to read those of twenty.
_MOST_LINES = 1 << 53
#: Of a file that a model would change unread, it is shown so many lines first.
_FIRST_LINES = 200
#: Where an edit finds nothing, what is searched for what is nearest (characters, lines), and shown.
_MAX_SEARCHED, _MAX_SEARCHED_LINES, _MAX_NEAR_LINES = 1 << 17, 2000, 20
#: Names that a model made up are repeated to it up to here (characters).
_NAMED = 200
#: Where people and judges see a call, it has so many characters at most.
_MAX_SHOWN_CALL_CHARS = 300
#: Of what ``cat`` said and printed before it failed, the model sees the end (characters).
_FAILED = 2000
_SILENT, _NOTHING = "[no output]", "[no output; no file has other contents]"
#: Where nothing may be written, or not all of it, what there was stays as it was:
#: a new file takes its place.
_WRITE = """
[ "$(ulimit -f)" != 0 ] && mkdir -p -- "$(dirname -- "$1")" || exit
if [ -f "$1" ] && [ -w "$1" ] && [ ! -L "$1" ] && new=$(mktemp -- "$1.XXXXXX" 2> /dev/null); then
    cat > "$new" && chmod --reference="$1" -- "$new" && mv -fT -- "$new" "$1" && exit
    rm -f -- "$new"
    exit 1
fi
cat > "$1"
"""


@dataclass(frozen=True, slots=True)
class ToolRequest:
    """A tool call whose arguments are in order."""

    name: ToolName
    arguments: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class KnownFiles:
    """The files that the model knows before a call."""

    #: What commands have left running, by name.
    left: tuple[str, ...] = ()
    #: Whether what a command leaves running goes on.
    stays: bool = False
    #: Whether it knows the file that it would change.
    file: bool = True
    #: The calls before it.
    commands: Sequence[FinishedCommand] = ()


#: As where there is no conversation.
NOTHING_SPECIAL = KnownFiles()


@dataclass(frozen=True, slots=True)
class ToolOutput:
    """The output of a tool call."""

    #: What the model sees.
    text: str
    exit_code: int | None = None
    seconds: float = 0.0
    outcome: ToolOutcome = "ran"
    #: Where it wanted to go and might not.
    refused: tuple[str, ...] = ()
    #: Which limit of the sandbox it passed, and by what.
    excess: str = ""
    #: What commands have left running, by name.
    left: tuple[str, ...] = ()
    #: Whether it changed files; None: that was not looked at.
    changed: bool | None = None
    #: Whether a command failed since it asked for input, of which there is none.
    asked_input: bool = False
    #: Whether one failed since it wanted a screen, or a browser, of which there is none.
    asked_screen: bool = False


def parse(call: ToolCall) -> ToolRequest | str:
    """Return the call as a request, or, for the model, what is wrong with it."""
    name = next((tool for tool in _ARGUMENTS if tool == call.name), None)
    if name is None:
        return f"There is no tool {call.name[:_NAMED]!r}. Tools: {', '.join(_ARGUMENTS)}."
    try:
        given = call.given()
    except (ValueError, RecursionError) as error:
        return f"The arguments are not valid JSON: {error}"
    types, required = _ARGUMENTS[name]
    if not isinstance(given, dict):
        return f"The arguments must be a JSON object with {', '.join(types)}."
    given = {key: value for key, value in given.items() if value is not None}
    if missing := required - given.keys():
        return f"Missing: {', '.join(sorted(missing))}."
    if unknown := given.keys() - types.keys():
        names = ", ".join(sorted(unknown))[:_NAMED]
        return f"Unknown: {names}. {call.name} takes {', '.join(types)}."
    for key, value in given.items():
        if not isinstance(value, types[key]) or isinstance(value, bool):
            return f"{key} must be a {'string' if types[key] is str else 'whole number'}."
        if isinstance(value, str) and key in {"path", "command"} and (not value or "\0" in value):
            return f"{key} must not be empty or hold NUL characters."
        if isinstance(value, int) and abs(value) > _MOST_LINES:
            return f"{key} must be a number of lines that a file can have."
    return ToolRequest(name, given)


def named(call: ToolCall) -> str:
    """Return a tool call as one short line: the command, or the tool with its path."""
    given = call.fields
    text = given.get("command") or f"{call.name} {given.get('path', '')}"
    return " ".join(str(text).split())[:_MAX_SHOWN_CALL_CHARS]


async def run(
    request: ToolRequest,
    place: Workplace,
    timeout_s: float,
    most: int | None = None,
    *,
    known: KnownFiles = NOTHING_SPECIAL,
    look: FileObserver | None = None,
) -> ToolOutput:
    """Run a request for at most ``timeout_s``; of its output at most ``most`` bytes are kept.

    What a command has changed, by ``look``, and what became of what it left running stand in the
    output. A file that the model does not know is shown, not changed. Raises ``SandboxError``.
    """
    left, note = known.left, ""
    if left and look is not None:
        look.forget()  # what runs in the background may have changed them
    if left and not place.running:
        note, left = prompts.gone(place.why_over), ()
    if request.name != "shell":
        output = await _filed(request, place, timeout_s, most, known=known.file)
        if look is not None:
            look.forget()
        return replace(output, text=lines(note, output.text), left=left)
    output = await _commanded(
        request, place, timeout_s, most, known=replace(known, left=left), look=look
    )
    return replace(output, text=lines(note, output.text))


async def _commanded(
    request: ToolRequest,
    place: Workplace,
    timeout_s: float,
    most: int | None,
    *,
    known: KnownFiles,
    look: FileObserver | None,
) -> ToolOutput:
    """Run a command; what it has changed, and what it leaves running, stand behind its output."""
    if look is not None:
        await look.before()
    command = request.arguments["command"]
    ran = await place.shell(command, timeout_s=timeout_s, at_most=most, stays=known.stays)
    changed, files = (None, "") if look is None else await look.after(command, known.commands)
    ran = replace(ran, output=in_words(command, ran.output))
    output, runs = _shown(ran, timeout_s), ""
    if ran.left != known.left:
        runs = prompts.running(ran.left, ran.log) if ran.left else prompts.gone(place.why_over)
    text = _NOTHING if output.text == _SILENT and changed is False and not files else output.text
    failed = ran.output if ran.exit_code else ""
    asked, screen = any(sign in failed for sign in _NO_INPUT), wants_screen(failed)
    keyboard = prompts.NO_KEYBOARD if asked else ""
    display = prompts.NO_SCREEN if screen else ""
    # An editor waits for keys until its time is over.
    other = instead(ran.output if ran.timed_out else failed)
    text = lines(text, keyboard, display, other, files, runs)
    return replace(
        output, text=text, left=ran.left, changed=changed, asked_input=asked, asked_screen=screen
    )


def lines(*parts: str) -> str:
    """Return texts as one, each beginning a line of its own."""
    text = ""
    for part in filter(None, parts):
        text += part if not text or text.endswith("\n") else f"\n{part}"
    return text


async def _filed(
    request: ToolRequest, place: Workplace, timeout_s: float, most: int | None, *, known: bool
) -> ToolOutput:
    """Run a request for a file; what commands have left running has no part in it."""
    arguments = request.arguments
    if request.name == "read_file":
        first = max(1, arguments.get("start", 1))
        last = str(first + max(1, arguments["lines"]) - 1) if "lines" in arguments else "$"
        argv = ["sed", "-n", f"{first},{last}p", "--", arguments["path"]]
        return _shown(await place.run(argv, timeout_s=timeout_s, at_most=most, own=True), timeout_s)
    if not known and (first := await _first(place, arguments["path"], timeout_s, most)):
        return first
    if request.name == "write_file":
        return await _write(place, arguments["path"], arguments["content"], timeout_s)
    return await _edit(place, arguments, timeout_s)


async def _first(
    place: Workplace, path: str, timeout_s: float, most: int | None
) -> ToolOutput | None:
    """Return the beginning of a file in the place of a change to it;
    None: there is nothing to be read.
    """
    argv = ["sed", "-n", f"1,{_FIRST_LINES}p;{_FIRST_LINES}q", "--", path]
    ran = await place.run(argv, timeout_s=timeout_s, at_most=most, own=True)
    if ran.timed_out:
        return _shown(ran, timeout_s)
    if ran.exit_code != 0 or not ran.output:
        return None
    note = f"[Nothing was changed: you have not read {path} yet. It begins:]"
    return ToolOutput(lines(note, ran.output), seconds=ran.seconds, outcome="refused")


async def _write(place: Workplace, path: str, content: str, timeout_s: float) -> ToolOutput:
    data = content.encode()
    argv = ["sh", "-c", _WRITE, "write_file", path]
    ran = await place.run(argv, stdin=data, timeout_s=timeout_s, own=True)
    if ran.exit_code != 0:
        return _shown(ran, timeout_s)
    return ToolOutput(f"Wrote {len(data)} bytes to {path}.", 0, ran.seconds)


async def _edit(place: Workplace, arguments: Mapping[str, Any], timeout_s: float) -> ToolOutput:
    path, old, new = arguments["path"], arguments["old"], arguments["new"]
    # Not masked: what the file holds is written back, and never shown.
    ran = await place.run(
        ["cat", "--", path], timeout_s=timeout_s, max_output_bytes=_EDITABLE, masked=False, own=True
    )
    if ran.exit_code != 0:
        said = place.masker.text(ran.output)[-_FAILED:]
        return _shown(replace(ran, output=said), timeout_s)
    text = ran.output
    if ran.cut or "\ufffd" in text:
        return ToolOutput(
            f"{path} is too large or not UTF-8 text; edit it with a command.", outcome="refused"
        )
    if "\r\n" in text and old not in text:
        # Models write \n; the file keeps its own line ends.
        old, new = (part.replace("\r\n", "\n").replace("\n", "\r\n") for part in (old, new))
    found = text.count(old) if old else 0
    if found != 1:
        problem = f"occurs {found} times" if found else "does not occur"
        return ToolOutput(
            f"`old` {problem} in {path}; it must occur exactly once. Nothing was changed."
            + ("" if found else _nearest(place.masker.before_cut(text[:_MAX_SEARCHED]), old)),
            outcome="refused",
        )
    written = await _write(place, path, text.replace(old, new), timeout_s)
    return (
        ToolOutput(f"Edited {path}.", 0, ran.seconds + written.seconds)
        if written.exit_code == 0
        else written
    )


def _nearest(text: str, old: str) -> str:
    """Return the passage of a text that is most like another; empty: none is."""
    wanted = next(filter(None, map(str.strip, old.splitlines())), "")[:_NAMED]
    there = text.splitlines()[:_MAX_SEARCHED_LINES]
    by_line = {line.strip()[:_NAMED]: n for n, line in reversed(list(enumerate(there)))}
    found = difflib.get_close_matches(wanted, by_line, 1)
    if not found:
        return ""
    first = by_line[found[0]]
    passage = there[first : first + min(old.count("\n") + 1, _MAX_NEAR_LINES)]
    return "\n".join((f" Nearest, from line {first + 1}:", *(line[:_NAMED] for line in passage)))


def _shown(ran: CommandEnd, timeout_s: float) -> ToolOutput:
    """Return a command's output with what the model must know of its end."""
    text = ran.output
    if ran.timed_out:
        note = f"[killed after {timeout_s:g} s, with everything that it had started]"
    elif ran.killed:
        note = f"[killed, with everything that it had started: {ran.excess}]"
    elif ran.exit_code:
        note = f"[exit code {ran.exit_code}]"
    else:
        note = "" if text else _SILENT
    if ran.excess and not ran.killed:
        note = f"{note}\n[{ran.excess}]".lstrip()
    if text and note and not text.endswith("\n"):
        text += "\n"
    outcome: ToolOutcome = "timed_out" if ran.timed_out else "killed" if ran.killed else "ran"
    return ToolOutput(text + note, ran.exit_code, ran.seconds, outcome, ran.refused, ran.excess)


#: The end of an indented block is as far in, or not at all: what lies deeper is text within it.
_BLOCK = re.compile(
    r"^([ \t]*)(`{3,}|~{3,})(?i:bash|sh|shell)[ \t]*(\r?)\n(.*?)(^(?:\1)?\2[ \t]*\r?$|\Z)",
    re.DOTALL | re.MULTILINE,
)
_WRAPPING = re.compile(r"^[ \t]*(?:```\w*|</?tool_calls?>)[ \t]*\r?$", re.MULTILINE)
_TAG = re.compile(r"</?tool_calls?>")
_JSON = json.JSONDecoder(strict=False)  # raw newlines in strings allowed
#: What stands between two call objects.
_BETWEEN = re.compile(r"[ \t\r\n,]*")
#: Calls of one answer that are taken; the model sees itself as having made no more.
#: As many as OpenAI's API takes.
MOST_CALLS = 128


def calls(
    answer: Answer, protocol: ToolProtocol, *, native_seen: bool
) -> tuple[tuple[ToolCall, ...], bool]:
    """Return the tool calls of an answer, and whether they are answered in text.

    ``protocol`` is ``native``, ``text`` or ``auto``.
    """
    if protocol == "text":
        return bash_block(answer), True
    if answer.tool_calls or protocol == "native" or native_seen:
        return answer.tool_calls[:MOST_CALLS], False
    return call_objects(answer.content)[:MOST_CALLS], False


def bash_block(answer: Answer) -> tuple[ToolCall, ...]:
    """Return the first bash block of an answer as a call of ``shell``.

    A block without its end was ended by the stop sequence, and is whole; one that was cut
    at the output limit becomes a call with broken arguments, which is refused.
    """
    match = _BLOCK.search(answer.content)
    if match is None:
        return ()
    indent, _, carriage, command, end = match.groups()
    if carriage:  # the answer's line ends, which bash would take for a part of each command
        command = command.replace("\r\n", "\n")
    if indent:
        command = re.sub(f"^{indent}", "", command, flags=re.MULTILINE)
    command = command.strip("\n")
    if not command.strip():
        return ()
    arguments = json.dumps({"command": command}, ensure_ascii=False)
    if answer.finish_reason == "length" and not end:
        arguments = arguments[:-1]
    return (ToolCall("text", "shell", arguments),)


def call_objects(content: str) -> tuple[ToolCall, ...]:
    """Return the calls of an answer that consists of nothing but valid call objects."""
    text = _TAG.sub("\n", _WRAPPING.sub("", content)).strip()
    found: list[ToolCall] = []
    place = 0
    try:
        while place < len(text) and len(found) < MOST_CALLS:
            value, place = _JSON.raw_decode(text, place)
            batch = value[:MOST_CALLS] if isinstance(value, list) else [value]
            made = [call for item in batch if (call := _call(item))]
            if not made or len(made) < len(batch):
                return ()
            found += made
            place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr] # it matches anything
    except (ValueError, RecursionError):
        return ()
    return tuple(structs.replace(call, id=f"call_{i}") for i, call in enumerate(found))


def _call(value: Any) -> ToolCall | None:
    if not isinstance(value, dict) or not isinstance(value.get("name"), str):
        return None
    if value.keys() - {"name", "arguments", "id", "type"}:
        return None
    arguments = value.get("arguments")
    if not isinstance(arguments, str):
        arguments = json.dumps(arguments, ensure_ascii=False)
    # Half a letter that stood escaped in the answer is whole only now.
    call = ToolCall("", value["name"], valid(arguments))
    return call if isinstance(parse(call), ToolRequest) else None
