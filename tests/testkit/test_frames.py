"""Frames in what passes a proxy: whole ones are changed, however the bytes come."""

import pytest

from cqrs_brokers_testkit.frames import each_frame, each_line


@pytest.mark.parametrize("step", [1, 3, 100])
def test_each_line_is_changed_once_however_the_bytes_come(step: int) -> None:
    """A line that is cut in two is given as one, and what is not changed passes as it is."""
    rewrite = each_line(lambda line: b"" if line == b"OK 1\n" else line.replace(b"OK", b"NO"))
    data = b"PONG\nOK 1\nOK 2\nhalf"
    changed = b"".join(rewrite(data[at : at + step]) for at in range(0, len(data), step))
    assert changed == b"PONG\nNO 2\n"
    assert rewrite(b" a line\n") == b"half a line\n"


def test_a_frame_is_as_long_as_it_says() -> None:
    """The length may need bytes that are not there yet."""
    rewrite = each_frame(lambda data: 1 + data[0] if data else None, bytes.upper)
    assert rewrite(b"\x02a") == b""
    assert rewrite(b"b\x00\x01") == b"\x02AB\x00"
    assert rewrite(b"c") == b"\x01C"
