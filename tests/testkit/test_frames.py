"""Frames in what passes a proxy: whole ones are changed, however the bytes come."""

from collections.abc import Callable

import pytest

from cqrs_brokers_testkit.conformance import Forgery
from cqrs_brokers_testkit.frames import each_frame, each_line, forgeries, line_length, with_block


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


@pytest.mark.parametrize("step", [1, 2, 100])
def test_a_block_belongs_to_its_line(step: int) -> None:
    """Of a line that says how many bytes follow, those bytes and their line break are part, whatever is in them."""
    seen: list[bytes] = []
    rewrite = each_frame(line_length(r"\$(\d+)"), lambda frame: seen.append(frame) or frame)  # type: ignore[func-returns-value]
    data = b"+PONG\r\n$4\r\na\r\nb\r\n$-1\r\n$0\r\n\r\n:1\n"
    assert b"".join(rewrite(data[at : at + step]) for at in range(0, len(data), step)) == data
    assert seen == [b"+PONG\r\n", b"$4\r\na\r\nb\r\n", b"$-1\r\n", b"$0\r\n\r\n", b":1\n"]


def test_another_block_changes_the_length_in_its_line() -> None:
    """The last number of the line is the new block's."""
    assert with_block(b"longer")(b"MSG a.1 7 3\r\nx\ny\r\n") == b"MSG a.1 7 6\r\nlonger\r\n"


def forged_by(forgery: Forgery, *chunks: bytes) -> tuple[list[bytes], object]:
    """What passes a connection with a forgery, and what beginning with it returned."""
    passed: list[bytes] = []

    class Connection:
        def rewrite(self, function: Callable[[bytes], bytes]) -> None:
            self.function = function

        def insert(self, data: bytes) -> None:
            passed.append(data)

    connection = Connection()
    begun = forgery.apply(connection)  # type: ignore[arg-type]
    passed += [connection.function(chunk) for chunk in chunks]
    return passed, begun


def test_answers_are_forged_and_nothing_else() -> None:
    """Each forgery changes what answers a message: by a function, or into the same bytes."""
    forged = forgeries(
        line_length(),
        lambda line: line.startswith(b"OK"),
        refused={"no": lambda line: line.replace(b"OK", b"NO")},
        unknown={"hum": b"HUM\n"},
    )
    assert {says: forgery.meaning for says, forgery in forged.items()} == {
        "nothing": "lost",
        "an answer without its last 1 bytes": "cut",
        "an answer without its last 2 bytes": "cut",
        "an answer without its last 3 bytes": "cut",
        "an answer without its last 4 bytes": "cut",
        "half an answer": "cut",
        "no": "refused",
        "hum": "unknown",
    }
    all_alike = {says: forgery for says, forgery in forged.items() if forgery.meaning != "cut"}
    passed = {says: b"".join(forged_by(forgery, b"PONG\nO", b"K 1\n")[0]) for says, forgery in all_alike.items()}
    assert passed == {"nothing": b"PONG\n", "no": b"PONG\nNO 1\n", "hum": b"PONG\nHUM\n"}


def test_one_answer_is_kept_back_until_it_is_let_through() -> None:
    """The first one, and only where the broker may answer in any order."""
    forged = forgeries(line_length(), lambda line: line.startswith(b"OK"), refused={}, unknown={}, any_order=True)
    passed, let_through = forged_by(next(f for f in forged.values() if f.meaning == "late"), b"OK 1\nPONG\nOK 2\n")
    assert passed == [b"PONG\nOK 2\n"]
    assert callable(let_through)
    let_through()
    assert passed == [b"PONG\nOK 2\n", b"OK 1\n"]


def test_of_one_answer_only_the_beginning_comes() -> None:
    """The answers before it are lost, and nothing comes after it."""
    forged = forgeries(line_length(), lambda line: line.startswith(b"OK"), refused={}, unknown={})
    answers = b"".join(b"OK %d\n" % n for n in range(1, 14))
    passed, _ = forged_by(forged["an answer without its last 2 bytes"], b"PONG\n" + answers, b"PONG\n")
    assert b"".join(passed) == b"PONG\nOK 1"


def test_one_answer_among_many_is_a_refusal() -> None:
    """Ten are lost, the next one says no, and the others come."""
    forged = forgeries(line_length(), bool, refused={"no": b"NO\n"}, unknown={}, any_order=True)
    passed, _ = forged_by(forged["no, once"], b"".join(b"OK %d\n" % n for n in range(1, 14)))
    assert b"".join(passed) == b"NO\nOK 12\nOK 13\n"
