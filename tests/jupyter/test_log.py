"""The lines that the log of a view keeps, and which of them are still to be sent."""

from __future__ import annotations

from burla_jupyter.log import LINE_CHARACTERS, Line, LineBuffer


def filled(count: int, **limits: int) -> LineBuffer:
    buffer = LineBuffer(**limits)
    for number in range(count):
        buffer.add(7, 1, f"{number}\n")
    return buffer


def texts(lines: list[Line]) -> list[str]:
    return [line.text for line in lines]


def test_a_text_is_split_into_lines_with_input_and_stream():
    buffer = LineBuffer()
    buffer.add(3, 2, "a\n\nb")
    assert buffer.last(10) == [Line(3, 2, "a"), Line(3, 2, ""), Line(3, 2, "b")]
    assert buffer.total == 3


def test_of_a_progress_bar_the_last_state_is_kept():
    buffer = LineBuffer()
    buffer.add(0, 2, " 10%\r 50%\r100%\r\nwindows\r\n")
    assert texts(buffer.last(10)) == ["100%", "windows"]


def test_of_a_very_long_line_the_beginning_is_kept_and_the_rest_counted():
    buffer = LineBuffer()
    buffer.add(0, 1, "x" * (LINE_CHARACTERS + 1234))
    assert texts(buffer.last(1)) == ["x" * LINE_CHARACTERS + " … (1,234 more characters)"]


def test_lines_are_taken_once_and_in_portions():
    buffer = filled(5)
    assert [(first, texts(lines)) for first, lines in (buffer.take(3), buffer.take(3), buffer.take(3))] == [
        (0, ["0", "1", "2"]),
        (3, ["3", "4"]),
        (5, []),
    ]


def test_what_is_kept_no_longer_is_skipped_and_the_numbers_say_so():
    buffer = filled(5, kept_lines=2)
    assert buffer.take() == (3, [Line(7, 1, "3"), Line(7, 1, "4")])


def test_characters_are_limited_too_but_the_newest_line_stays():
    buffer = LineBuffer(kept_characters=10)
    for text in ("12345678", "1234", "123456", "x" * 50):
        buffer.add(0, 1, text)
        assert texts(buffer.last(9))[-1] == text
    assert texts(buffer.last(9)) == ["x" * 50]


def test_after_a_rewind_all_that_is_kept_is_taken_again():
    buffer = filled(4, kept_lines=3)
    buffer.take()
    buffer.rewind()
    assert buffer.take() == (1, [Line(7, 1, "1"), Line(7, 1, "2"), Line(7, 1, "3")])


def test_the_last_lines_are_limited_by_number_and_by_characters():
    buffer = filled(12)
    assert texts(buffer.last(3)) == ["9", "10", "11"]
    assert texts(buffer.last(9, characters=5)) == ["9", "10", "11"]
