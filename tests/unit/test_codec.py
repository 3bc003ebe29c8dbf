"""The record as bytes: what is read is what was written, and only where it was written."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safekafka.record import Fields
from safekafka.spool.codec import checksum, decode, encode

BYTES = st.none() | st.binary(max_size=50)
FIELDS: st.SearchStrategy[Fields] = st.tuples(
    st.text(min_size=1, max_size=20),
    BYTES,
    BYTES,
    st.none() | st.lists(st.tuples(st.text(max_size=10), BYTES), max_size=4),
    st.integers(-1, 2**31 - 1),
    st.integers(0, 2**63 - 1),
)


@given(FIELDS)
@example(("orders", None, None, None, -1, 0))
@example(("orders", b"", b"", [], 0, 1))
@example(("Bestellungen-ß", b"v", b"k", [("", None), ("", b""), ("ключ", "ß".encode())], 2**31 - 1, 2**63 - 1))
def test_P5_what_is_read_is_what_was_written_none_and_empty_differ(fields: Fields) -> None:
    assert decode(encode(fields)) == fields


@given(st.text(max_size=20))
def test_a_header_given_as_text_is_stored_as_what_the_client_would_send(text: str) -> None:
    headers = decode(encode(("orders", None, None, [("h", text)], -1, 1)))[3]
    assert headers == [("h", text.encode())]


@given(FIELDS, FIELDS)
def test_different_records_are_different_bytes(one: Fields, other: Fields) -> None:
    assert (encode(one) == encode(other)) == (one == other)


@given(FIELDS, st.integers(1, 2**31), st.integers(1, 2**31))
def test_a_record_in_the_place_of_another_does_not_pass_its_checksum(fields: Fields, seq: int, other: int) -> None:
    data = encode(fields)
    assert (checksum(seq, data) == checksum(other, data)) == (seq == other)


@given(FIELDS, st.integers(1, 2**40), st.data())
def test_B_S03_no_flipped_bit_passes_the_checksum(fields: Fields, seq: int, draw: st.DataObject) -> None:
    data = bytearray(encode(fields))
    expected = checksum(seq, bytes(data))
    data[draw.draw(st.integers(0, len(data) - 1), "byte")] ^= 1 << draw.draw(st.integers(0, 7), "bit")
    assert checksum(seq, bytes(data)) != expected


@pytest.mark.parametrize("length", [0, 1, 99])
def test_B_S03_a_record_cut_short_does_not_pass_the_checksum(length: int) -> None:
    data = encode(("orders", b"v" * 100, b"k", [("h", b"x")], -1, 1))
    assert checksum(7, data[:length]) != checksum(7, data)
