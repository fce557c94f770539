"""What commands print that want what is not there."""

from __future__ import annotations

import pytest

from batchd.agent import prompts, tools


@pytest.mark.parametrize(
    ("output", "wants"),
    [
        ("/bin/bash: line 42: firefox: command not found\n", True),
        ("sh: 1: xdg-open: not found", True),
        ("done\n/bin/bash: line 1: open: command not found\nmore", True),
        ("FileNotFoundError: [Errno 2] No such file or directory: 'xdg-open'", True),
        (
            "_tkinter.TclError: no display name and no $DISPLAY environment variable",
            True,
        ),
        ("Error: cannot open display: :0", True),
        ("pygame.error: No available video device", True),
        ("top: failed tty get\n", True),
        ("open terminal failed: not a terminal\n", True),
        ("Error: failed to open: not found", False),
        ("std::fs::File::open: not found", False),
        ("E: chromium-driver: not found", False),
        ('-export DISPLAY="$DISPLAY"\n', False),
        ("/bin/bash: line 1: gcc: command not found", False),
    ],
)
def test_a_screen_that_is_wanted_is_known(output: str, wants: bool) -> None:
    """By what shells say of browsers, and programs of displays; not by a file that is not found."""
    assert tools.wants_screen(output) == wants


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("/bin/bash: line 1: nano: command not found\n", prompts.NO_EDITOR),
        ("Vim: Warning: Output is not to a terminal\n", prompts.NO_EDITOR),
        ("error: Terminal is dumb, but EDITOR unset\nPlease supply the message", prompts.NO_EDITOR),
        ("x\n/bin/bash: line 2: sudo: command not found", prompts.NO_RIGHTS),
        ("E: Could not open lock file /var/lib/apt/lists/lock - open (13: Permission denied)", prompts.NO_RIGHTS),
        ("/bin/bash: line 1: gcc: command not found", ""),
        ("sudoku: not found", ""),
    ],
)  # fmt: skip
def test_who_wants_an_editor_or_rights_reads_what_there_is_instead(output: str, said: str) -> None:
    """One line; not for a program that is just not there."""
    assert tools.instead(output) == said


def test_a_warning_is_put_in_words_where_the_command_has_a_document() -> None:
    """Elsewhere the same line is what a program printed, and stays."""
    warning = "/bin/bash: line 4: warning: here-document at line 2 delimited by end-of-file (wanted `EOF')\n"
    assert tools.in_words("cat log", warning) == warning
    assert tools.in_words("true\ncat > a <<'EOF'\na", f"{warning}b\n") == (
        "[The here-document of line 2 had no EOF line, so all that followed is in it.]\nb\n"
    )
