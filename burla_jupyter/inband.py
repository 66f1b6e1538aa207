"""What calls display, as lines among what they print: each line is one mimebundle."""

from __future__ import annotations

import base64
import binascii
import json
import re
from collections.abc import Iterator
from typing import Any

BEGIN, END = "\x1b]5379;", "\x1b\\"  # an escape sequence that terminals swallow
_LINE = re.compile(r"\x1b\]5379;([A-Za-z0-9+/=]*)\x1b\\\n?")


def encode(data: dict[str, Any], metadata: dict[str, Any]) -> str:
    """Return a mimebundle as a line; bytes in it have to be base64 text already."""
    payload = json.dumps({"data": data, "metadata": metadata}, default=repr).encode()
    return f"{BEGIN}{base64.b64encode(payload).decode()}{END}\n"


def split(text: str) -> Iterator[str | tuple[dict[str, Any], dict[str, Any]]]:
    """Yield what `text` holds, in order: plain text, and (data, metadata) of what was displayed."""
    at = 0
    for found in _LINE.finditer(text):
        try:
            bundle = json.loads(base64.b64decode(found[1], validate=True))
            displayed = bundle["data"], bundle["metadata"]
        except (binascii.Error, ValueError, KeyError, TypeError):
            continue  # not ours after all: it stays text
        if found.start() > at:
            yield text[at : found.start()]
        yield displayed
        at = found.end()
    if at < len(text):
        yield text[at:]
