"""What the README names is there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\(([^)#]+)\)", README))))
def test_links_lead_to_files(link: str):
    assert link.startswith("https://") or (ROOT / link).exists()


@pytest.mark.parametrize(("test", "file"), re.findall(r"\[`(test_\w+)`\]\(([^)]+)\)", README))
def test_each_promise_names_a_test(test: str, file: str):
    assert f"def {test}(" in (ROOT / file).read_text()
