"""Many outputs as one event."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from burla import outputs
from burla.node.outbox import Outbox
from burla.protocol import Failure, Output, Outputs, Results

LISTS = st.lists(
    st.builds(Output, st.integers(0, 2**40), st.sampled_from([1, 2]), st.binary(max_size=20)), min_size=1, max_size=50
)


@given(LISTS)
def test_outputs_come_out_as_they_went_in(written: list[Output]):
    event = outputs.pack(written)
    assert list(outputs.unpack(event)) == written
    if isinstance(event, Outputs):
        assert all(event.start <= one.index < event.stop for one in written)


@given(LISTS)
def test_what_is_about_one_input_is_found_among_others(written: list[Output]):
    index = written[0].index
    mine = outputs.about(outputs.pack(written), index)
    assert mine is not None and list(outputs.unpack(mine)) == [one for one in written if one.index == index]


def test_an_event_may_be_about_no_output_of_an_input_in_its_range():
    assert outputs.about(outputs.pack([Output(1, 1, b"a"), Output(3, 1, b"b")]), 2) is None


@pytest.mark.parametrize("event", [Failure(1, b""), Results(0, 2, False, b"")])
def test_other_events_have_no_outputs_and_stay_as_they_are(event: Failure | Results):
    assert list(outputs.unpack(event)) == [] and outputs.about(event, 1) is event


def test_a_node_tells_of_outputs_that_follow_each_other_at_once_and_in_order():
    outbox = Outbox()
    one, two, three = (Output(index, 1, b"x") for index in range(3))
    results = Results(0, 2, False, b"r")
    for news in (one, two, results, three):
        outbox.put(news)
    assert outbox.take() == (outputs.pack([one, two]), results, three)
    assert not outbox and not outbox.full
