"""HTTP/2 by hand: as much of it as a client needs that means harm. Libraries keep to the rules, which is what these must not."""

import socket
import struct

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

DATA, HEADERS, RST_STREAM, SETTINGS, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = 0, 1, 3, 4, 6, 7, 8, 9
END_STREAM, END_HEADERS, ACK = 1, 4, 1
# Error codes (RFC 9113, section 7).
CANCEL = 8


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def settings(**values: int) -> bytes:
    """Named after their numbers: `settings(_4=1)` sets the initial window."""
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", int(name[1:]), value) for name, value in values.items()))


def length(number: int) -> bytes:
    """A string's length in HPACK: seven bits, then seven more each (RFC 7541, section 5.1)."""
    if number < 127:
        return bytes([number])
    number -= 127
    rest = bytearray()
    while number >= 128:
        rest.append(number % 128 | 128)
        number //= 128
    return bytes([127, *rest, number])


def fields(pairs: list[tuple[str, str]]) -> bytes:
    """Header fields as literals that are not indexed, so that neither side needs a table."""
    block = b""
    for name, value in pairs:
        block += b"\0" + length(len(name)) + name.encode() + length(len(value)) + value.encode()
    return block


def call(method: str, *more: tuple[str, str]) -> bytes:
    """The fields that a call of the Observer begins with."""
    return fields([
        (":method", "POST"), (":scheme", "http"), (":path", f"/dinle.v1.Observer/{method}"), (":authority", "agent"),
        ("content-type", "application/grpc"), ("te", "trailers"), *more,
    ])


def message(content: bytes) -> bytes:
    """As gRPC frames it: not compressed."""
    return struct.pack(">BI", 0, len(content)) + content


def subscribe(stream: int, request) -> bytes:
    """A whole call."""
    return frame(HEADERS, END_HEADERS, stream, call("Subscribe")) + frame(
        DATA, END_STREAM, stream, message(request.SerializeToString())
    )


def frames(received: bytes):
    """Those of what was received that are whole: kind, flags, stream, payload."""
    while len(received) >= 9:
        end = 9 + int.from_bytes(received[:3], "big")
        if len(received) < end:
            return
        yield received[3], received[4], int.from_bytes(received[5:9], "big"), received[9:end]
        received = received[end:]


def until_closed(connection: socket.socket, seconds: float) -> bytes:
    """What the other side still says before it closes the connection, which it must in that time."""
    connection.settimeout(seconds)
    received = b""
    try:
        while more := connection.recv(1 << 16):
            received += more
    except TimeoutError:
        raise AssertionError(f"the connection is still open after {seconds} s in silence; it said {received[:200]}") from None
    except OSError:
        # A reset is an end, too.
        pass
    return received
