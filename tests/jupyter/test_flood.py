"""How much of what calls print goes to the ordinary output of a cell."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from burla_jupyter.flood import FloodLimit


def test_lines_pass_up_to_the_limit_and_none_after_it():
    limit = FloodLimit(lines=3, limit_bytes=1000)
    assert [limit.admit(text) for text in ("a\nb\n", "c\n")] == ["a\nb\n", "c\n"]
    assert not limit.reached
    assert limit.admit("d\n") == ""
    assert (limit.reached, limit.held_back) == (True, 1)


def test_a_text_over_the_limit_is_cut_between_lines():
    limit = FloodLimit(lines=2, limit_bytes=1000)
    assert limit.admit("a\nb\nc\nd") == "a\nb\n"
    assert limit.held_back == 2


def test_long_lines_count_by_their_length():
    limit = FloodLimit(lines=100, limit_bytes=10)
    assert limit.admit("12345\n1234\n") == "12345\n"
    assert limit.admit("x\n") == "", "a short line must not appear after a gap"
    assert limit.held_back == 2


@given(st.lists(st.text("ab\n", min_size=1)), st.integers(0, 5), st.integers(0, 20))
def test_what_passes_is_the_beginning_of_all_and_every_line_is_counted(texts: list[str], lines: int, size: int):
    limit = FloodLimit(lines, size)
    passed = [limit.admit(text) for text in texts]
    held = [text[len(part) :] for text, part in zip(texts, passed, strict=True)]
    assert all(text.startswith(part) for text, part in zip(texts, passed, strict=True))
    first_held = next((number for number, text in enumerate(held) if text), len(texts))
    assert not any(passed[first_held + 1 :])
    assert limit.held_back == sum(text.count("\n") + (not text.endswith("\n")) for text in held if text)
    assert len("".join(passed)) <= size
