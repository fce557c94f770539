"""What stands in a report, read without a browser."""

from __future__ import annotations

import base64
import json
import re
import zlib
from pathlib import Path
from typing import Any

#: What must stay text, wherever it came from.
HOSTILE = (
    "</script><script>window.pwned = 1</script>",
    '<img src="http://127.0.0.1:9/x" onerror="window.pwned = 2">',
    '"><svg onload="window.pwned = 3">\u2028\u2029 <!-- <script>',
    "javascript:window.pwned=4 ${window.pwned=5} {{window.pwned=6}}",
)


def embedded(page: str, name: str) -> str:
    """Return the text of a data block of a page."""
    found = re.search(rf'<script type="[^"]+" id="{name}">(.*?)</script>', page, re.DOTALL)
    assert found
    return found.group(1)


def details(page: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return what a page was given, and the details of its tasks, all that are in it."""
    text = page.read_text("utf-8")
    content = json.loads(embedded(text, "data"))
    blocks = embedded(text, "blocks")
    found = (blocks[at : at + size] for at, size in content["tasks"]["block"] if size)
    return content, [json.loads(zlib.decompress(base64.b64decode(b))) for b in found]
