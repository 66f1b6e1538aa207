"""What is wrong with a `%%burla` cell itself."""

from __future__ import annotations


class Refused(ValueError):
    """A cell that cannot be meant so; the message says where, and what to do."""
