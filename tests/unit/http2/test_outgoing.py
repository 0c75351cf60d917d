"""What is put together for the network."""

from __future__ import annotations

import pytest

from headrace_server.http2 import frames
from headrace_server.http2.outgoing import Outgoing

HEAD = 9


@pytest.mark.parametrize("size", [0, 1, 16_384, 16_385, 40_000])
def test_a_header_block_is_split_into_frames_that_the_peer_takes(size: int) -> None:
    outgoing = Outgoing(lambda: None)
    block = bytes(index % 251 for index in range(size))
    outgoing.put_headers(7, frames.END_STREAM, block)
    data, parts, kinds = outgoing.take(), [], []
    while data:
        length = int.from_bytes(data[:3], "big")
        kinds.append((data[3], data[4]))
        assert length <= outgoing.frame_bytes
        assert int.from_bytes(data[5:HEAD], "big") == 7
        parts.append(data[HEAD : HEAD + length])
        data = data[HEAD + length :]
    assert b"".join(parts) == block
    assert [kind for kind, _ in kinds] == [frames.HEADERS] + [frames.CONTINUATION] * (
        len(kinds) - 1
    )
    # The last one ends the headers; that they end the stream is said by the first.
    assert [bool(flags & frames.END_HEADERS) for _, flags in kinds] == [
        *[False] * (len(kinds) - 1),
        True,
    ]
    assert kinds[0][1] & frames.END_STREAM
