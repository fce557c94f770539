"""Turns rich's text into what a terminal is sent: colours that it has, letters that it has."""

from __future__ import annotations

import io
from collections.abc import Sequence

from rich.console import Console, Group
from rich.text import Text

from batchd.cli.display import glyphs
from batchd.cli.display.formatting import colours_wanted


class Canvas:
    """Renders whole screens."""

    def __init__(self, *, ascii_only: bool, styled: bool = True) -> None:
        self._ascii = ascii_only
        # Sixteen colours, which every theme makes readable on its own background.
        self._console = Console(
            file=io.StringIO(),
            force_terminal=styled,
            color_system="standard" if styled else None,
            no_color=not colours_wanted(),
            highlight=False,
            markup=False,
            emoji=False,
        )

    def render(self, lines: Sequence[Text], width: int) -> list[str]:
        """Return a string for each line, none of them wider than ``width``."""
        if not lines:
            return []
        self._console.width = width
        with self._console.capture() as capture:
            self._console.print(Group(*lines), no_wrap=True, overflow="ellipsis", crop=True)
        shown = [line.rstrip() for line in capture.get().split("\n")[:-1]]
        return [glyphs.plain(line) for line in shown] if self._ascii else shown
