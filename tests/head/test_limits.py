"""How much of what calls print is kept."""

from __future__ import annotations

from burla import outputs
from burla.head.limits import OutputLimits
from burla.protocol import STDERR, STDOUT, Output, Outputs


def out(index: int, text: bytes, stream: int = STDOUT) -> Output:
    return Output(index, stream, text)


def test_output_within_the_limits_is_kept_as_it_is():
    limits = OutputLimits(call_bytes=10, job_bytes=30)
    pieces = [out(0, b"12345"), out(0, b"67890", STDERR), out(1, b"1234567890")]
    assert [limits.admit(piece) for piece in pieces] == [(piece,) for piece in pieces]
    assert limits.finish(0, 2) == ()


def test_of_a_call_that_prints_too_much_the_beginning_is_kept_and_the_rest_counted():
    limits = OutputLimits(call_bytes=10, job_bytes=100)
    assert limits.admit(out(3, b"12345678")) == (out(3, b"12345678"),)
    assert limits.admit(out(3, b"90abc")) == (out(3, b"90"),)
    assert limits.admit(out(3, b"d" * 1000)) == ()
    assert limits.admit(out(4, b"other")) == (out(4, b"other"),)
    (line,) = limits.finish(0, 10)
    assert (line.index, line.stream) == (3, STDERR)
    assert b"1,003 more bytes that input 3 printed were dropped" in line.data
    assert limits.finish(0, 10) == (), "said once"


def test_of_outputs_of_several_calls_each_is_counted_for_its_own():
    limits = OutputLimits(call_bytes=4, job_bytes=9)
    first = outputs.pack([out(0, b"1234"), out(1, b"123")])
    assert isinstance(first, Outputs) and limits.admit_all(first) == (first,)
    second = outputs.pack([out(0, b"5"), out(1, b"45"), out(2, b"12")])
    assert isinstance(second, Outputs)
    assert limits.admit_all(second) == (outputs.pack([out(1, b"4"), out(2, b"1")]),)
    assert [line.index for line in limits.finish(0, 3)] == [0, 1, 2]


def test_a_retried_call_has_its_room_again_only_after_its_outcome():
    limits = OutputLimits(call_bytes=4, job_bytes=100)
    limits.admit(out(0, b"1234"))
    assert limits.admit(out(0, b"5")) == ()
    limits.finish(0, 1)
    assert limits.admit(out(0, b"5")) == (out(0, b"5"),)


def test_all_calls_of_a_job_share_its_limit_also_over_a_restart():
    limits = OutputLimits(output_bytes=95, call_bytes=10, job_bytes=100)
    assert limits.admit(out(0, b"123")) == (out(0, b"123"),)
    assert limits.admit(out(1, b"1234")) == (out(1, b"12"),)
    assert limits.admit(out(2, b"1")) == ()
    assert [line.index for line in limits.finish(1, 3)] == [1, 2]
