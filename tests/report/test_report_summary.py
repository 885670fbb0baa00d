"""The summary of records is the summary of the event log that they make."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st
from samples import DNS, HTTP, RECORDS, START, UP, hit, log_of

from gfwemu.engine.records import MessageSeen, Record
from gfwemu.report.summary import Summary, SummaryReader, summarise

MORE: tuple[Record, ...] = (
    hit(HTTP, facts={"http.host": "b.example"}, direction=UP, rule="other", time=START - 1),
    MessageSeen(START, DNS, UP, {"dns.qname": "", "dns.response": False}),
)


def of_records(records: list[Record]) -> Summary:
    reader = SummaryReader()
    for record in records:
        reader.record(record)
    return reader.finish()


@given(st.lists(st.sampled_from([*RECORDS, *MORE]), max_size=12))
def test_records_are_summed_up_as_their_lines_are(records: list[Record]) -> None:
    found, expected = asdict(of_records(records)), asdict(summarise(log_of(records)))
    times = [[row.pop("when") for row in one["rows"]] for one in (found, expected)]
    assert found == expected
    # The log keeps microseconds.
    assert times[0] == pytest.approx(times[1], abs=2e-6)
