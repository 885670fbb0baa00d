"""Evasions are about knobs: with the knob turned, the censor no longer falls for them, or falls for what it did not."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest

from gfwemu.conformance.cases import Case, load_cases
from gfwemu.conformance.replay import replay_cases
from gfwemu.conformance.result import FAIL
from gfwemu.rules.catalogue import find_profile
from gfwemu.rules.load import load_rules

NO_SYN = "resync: {multiple_syn: {probability: 0}, syn_with_data: {probability: 0}}"
MENDED_BY_NOTHING = "resync: {multiple_syn: {probability: 0}, synack_wrong_ack: {probability: 0}}"
LAST_SYN = "resync: {multiple_syn: {lock_on: [this_packet]}}"
NO_EXTRA_SYN = "resync: {multiple_syn: {probability: 0}}"
CHECKED = "verify_checksum: true"
STUBBORN = "teardown: []"
EACH_ALONE = "reassembly: none"
"""Each segment is read alone: nothing takes the place of anything."""

TURNED: list[tuple[str, str, str, str]] = [
    # profile, box, knobs, cases that fail with them
    ("china-2013", "http", "create_on: both", "evasion13-only-synack-passes"),
    ("china-2013", "http", "create_on: synack", "evasion13-no-synack-caught"),
    ("china-2013", "http", CHECKED, "evasion13-early-syn-checksum"),
    ("china-2013", "http", "teardown: [fin]", "evasion13-reset-ttl evasion13-reset-ack-ttl"),
    ("china-2013", "http", EACH_ALONE, "evasion13-junk-ttl evasion13-halves-caught evasion13-out-of-order-caught"),
    ("china-2013", "http", "small_segments: 8, small_segments_when: always", "evasion13-small-segments-caught"),
    ("china-2013", "http", "overlap: last", "evasion13-earlier-copy-wins"),
    ("china-2013", "http", "hole_lifetime: 10h-11h", "evasion13-hole-91-minutes-evades"),
    ("china-2013", "http", "hole_lifetime: 1m-2m", "evasion13-hole-59-minutes-caught"),
    ("china-2017", "http", "create_on: syn", "evasion17-only-synack-caught evasion17-reversal"),
    ("china-2017", "http", "create_on: synack, handshake: full", "evasion17-only-syn-caught"),
    ("china-2017", "http", "create_on: any", "evasion17-neither-passes"),
    ("china-2017", "http", CHECKED, "evasion17-in-order-checksum evasion17-reset-checksum evasion17-reset-ack-checksum "
     "evasion17-reset-early"),
    ("china-2017", "http", "bad_ack: ignore", "evasion17-in-order-ack"),
    ("china-2017", "http", "no_flags: accept", "evasion17-in-order-no-flag"),
    ("china-2017", "http", "md5_option: ignore", "evasion17-in-order-md5"),
    ("china-2017", "http", "old_timestamp: ignore", "evasion17-in-order-timestamp"),
    ("china-2017", "http", "bad_data_offset: ignore", "evasion17-in-order-header"),
    ("china-2017", "http", "data_without_ack: ignore", "evasion17-in-order-fin-only"),
    ("china-2017", "http", EACH_ALONE, "evasion17-in-order-ttl evasion17-halves-caught"),
    ("china-2017", "http", "resync: {rst: {probability: 0}}", "evasion17-reset-ttl evasion17-reset-ack-ttl"),
    ("china-2017", "http", "resync: {rst: {probability: 1}}", "evasion17-reset-ttl"),
    ("china-2017", "http", "resync: {rst: {lock_on: [server_synack]}}", "evasion17-reset-ttl"),
    ("china-2017", "http", "resync: {rst: {probability: 1, lock_on: [this_packet]}}", "evasion17-improved-teardown"),
    ("china-2017", "http", "resync: {rst_before_established: {probability: 0.24}}", "evasion17-reset-early"),
    ("china-2017", "http", "teardown: {rst: {}, fin: {}}", "evasion17-fin-ttl evasion17-fin-checksum"),
    ("china-2017", "http", MENDED_BY_NOTHING, "evasion17-early-syn-caught "
     "evasion17-early-syn-checksum-caught"),
    ("china-2017", "http", LAST_SYN, "evasion17-resync-without-desync-caught"),
    ("china-2017", "http", "resync: {multiple_synack: {probability: 0}}", "evasion17-multiple-synack"),
    ("china-2017", "http", "resync: {synack_wrong_ack: {probability: 0}}", "evasion17-synack-wrong-ack"),
    ("china-2017", "http", "out_of_window: follow", "evasion17-desync-alone-caught"),
    ("china-2019", "http", "small_segments: 0", "evasion19-first-segment-of-eight evasion19-segments-out-of-order "
     "evasion19-small-junk-caught"),
    ("china-2019", "http", "small_segments: 20", "evasion19-first-segment-of-nine-caught "
     "evasion19-ten-bytes-a-segment-caught evasion19-large-segments-out-of-order-caught"),
    ("china-2019", "http", "seq_before_isn: trim", "evasion19-seq-at-isn"),
    ("china-2019", "http", CHECKED, "evasion19-bad-data-early evasion19-bad-data-checksum evasion19-fin-data-checksum "
     "evasion19-fin-behind-data evasion19-many-flags-checksum evasion19-reset-timestamp"),
    ("china-2019", "http", "md5_option: ignore", "evasion19-bad-data-md5 evasion19-fin-data-md5 "
     "evasion19-many-flags-md5"),
    ("china-2019", "http", "old_timestamp: ignore", "evasion19-fin-data-timestamp"),
    ("china-2019", "http", "bad_ack: ignore", "evasion19-fin-data-ack evasion19-reset-ack-early"),
    ("china-2019", "http", "data_without_ack: ignore", "evasion19-fin-data-early "
     "evasion19-data-without-ack-early"),
    ("china-2019", "http", "odd_flags: ignore", "evasion19-many-flags-ttl evasion19-many-flags-checksum"),
    ("china-2019", "http", NO_SYN, "tcp19-syn-with-data"),
    ("china-2019", "http", LAST_SYN, "evasion19-second-syn-without-data-caught"),
    ("china-2019", "http", "resync: {rst_before_established: {probability: 0}}", "evasion19-reset-order "
     "evasion19-reset-timestamp evasion19-reset-ack-early"),
    ("china-2019", "http", EACH_ALONE, "evasion19-overlap-load-ttl evasion19-data-then-request-caught"),
    ("china-2019", "http", "create_on: syn", "evasion19-turnaround"),
    ("china-2019", "http", "bad_data_offset: ignore", "evasion19-data-offset-below"),
    ("china-2019", "https", "small_segments: 0", "evasion19-tls-segments"),
    ("china-2019", "https", STUBBORN, "evasion19-tls-reset"),
    ("china-2019", "http", "resync: {server_payload_before_synack: {probability: 0}}", "server-open-load-http"),
    ("china-2019", "http", "resync: {server_rst: {probability: 0}}", "server-reset-reset-http"),
    ("china-2019", "http", "simultaneous_open: advance", "server-open-load-http"),
    ("china-2019", "https", "resync: {server_rst: {probability: 0.5}}", "server-reset-reset-https"),
    ("china-2021", "esni", "small_segments: 0", "evasion-esni-first-segment-of-four evasion-esni-server-small-window"),
    ("china-2021", "esni", NO_EXTRA_SYN, "evasion-esni-three-syns evasion-esni-fin-and-syn "
     "evasion-esni-fin-and-syn-off-by-one"),
    ("china-2021", "esni", "resync: {synack_wrong_ack: {probability: 0}}", "evasion-esni-server-wrong-ack"),
    ("china-2021", "esni", "create_on: syn, handshake: syn", "evasion-esni-turnaround"),
    ("china-2021", "esni", "handshake: syn", "evasion-esni-no-handshake-passes"),
    ("china-2021", "esni", STUBBORN, "evasion-esni-reset-checksum evasion-esni-reset-ttl"),
    ("china-2021", "esni", CHECKED, "evasion-esni-junk-checksum evasion-esni-reset-checksum"),
    ("china-2021", "esni", EACH_ALONE, "evasion-esni-halves-caught"),
    ("china-2025", "https", "small_segments: 8, small_segments_when: always", "evasion-tls-small-segments "
     "evasion-tls-single-bytes"),
    ("china-2025", "https", EACH_ALONE, "evasion-tls-segment-before-name evasion-tls-segment-in-name "
     "evasion-tls-segments-reversed evasion-tls-harmless-hello-ttl"),
    ("china-2025", "https", "create_on: both, handshake: none", "evasion-tls-only-synack-passes"),
    ("china-2025", "https", "create_on: both", "evasion-tls-turnaround-caught"),
    ("china-2025", "https", "md5_option: ignore", "evasion-tls-junk-md5"),
    ("china-2025", "https", CHECKED, "evasion-tls-data-offset"),
    ("china-2025", "https", "data_offset: 5", "evasion-tls-odd-offset-caught"),
    ("china-2025", "https", STUBBORN, "evasion-tls-reset-ttl"),
    ("china-2025", "http", "small_segments: 8, small_segments_when: always", "evasion-http-small-segments"),
    ("china-2025", "dns-tcp", "reassembly: full", "evasion-dns-tcp-segments"),
    ("china-2025", "dns-tcp", STUBBORN, "evasion-dns-tcp-reset"),
    ("china-henan", "henan", "reassembly: full", "evasion-henan-segments-http"),
    ("china-henan", "henan", "create_on: both, teardown: [rst], reassembly: full", "evasion-henan-reset-does-not-help "
     "evasion-henan-junk-does-not-help"),
]  # fmt: skip


@cache
def cases_of(profile: str) -> dict[str, Case]:
    return {case.id: case for case in load_cases(profile)}


@pytest.mark.parametrize(
    ("profile", "box", "knobs", "ids"), TURNED, ids=[f"{row[0]} {row[1]} {row[2]}" for row in TURNED]
)
def test_an_evasion_depends_on_its_knob(tmp_path: Path, profile: str, box: str, knobs: str, ids: str) -> None:
    turned = tmp_path / "turned.yaml"
    boxes = f"{{{box}: {{tcp: {{{knobs}}}}}}}"
    turned.write_text(f"version: 1\ndescription: A knob turned.\ninclude: [{find_profile(profile)}]\nboxes: {boxes}\n")
    cases = [cases_of(profile)[name] for name in ids.split()]
    results = replay_cases(load_rules([turned]), cases)
    assert [one.case.id for one in results if one.verdict != FAIL] == []
