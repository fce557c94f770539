"""Signs in the output of commands that want what is not there:
input, a screen, the end of a here-document.
"""

from __future__ import annotations

import re

from batchd.agent import prompts

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


def wants_input(output: str) -> bool:
    """Return whether a command that failed asked for input."""
    return any(sign in output for sign in _NO_INPUT)


def wants_screen(output: str) -> bool:
    """Return whether a command that failed wanted to show something."""
    return _NO_SCREEN.search(output) is not None


def in_words(command: str, output: str) -> str:
    """Return an output with bash's warning of a here-document
    that nothing ends in words that a model does not mistake.
    """
    return _OPEN_DOCUMENT.sub(prompts.OPEN_DOCUMENT, output) if "<<" in command else output
