"""Records made of headers: what becomes a field, and what is left for the user."""

from cqrs_brokers.pipeline import header_text, header_value
from cqrs_brokers_testkit.readers import Record


def test_a_record_is_made_of_text_headers() -> None:
    """Names of the wire format are fields, a prefix is removed, and the broker's own headers are left out."""
    headers = {"message-id": "1", "Own-Id": "x", "header:a": header_value("1 %"), "ordering-key": "k"}
    record = Record.of_headers("t", headers, b"b", prefix="header:", decode=header_text, without=["Own-Id"], offset=3)
    assert (record.topic, record.message_id, record.key, record.body, record.offset) == ("t", "1", "k", b"b", 3)
    assert record.headers == {"a": "1 %"}
    assert record.flags == {}


def test_a_record_of_headers_has_the_flags_that_it_is_given() -> None:
    """What the broker says beside the headers is kept apart from them."""
    record = Record.of_headers("t", {"message-id": "1"}, b"", flags={"expires": "0"})
    assert (record.flags, record.headers) == ({"expires": "0"}, {})
