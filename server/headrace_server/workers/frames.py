"""The messages between the front and a worker, and their framing. Sans-I/O.

A frame is a 4-byte little-endian length and a msgpack body. Tensors never travel in frames: they
lie in shared memory (`slab.py`), and a frame says where. A file descriptor travels beside the
frame that announces it (`Slab`). The codec is typed and executes nothing, because one end runs
users' code.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from headrace_server.models.spec import ModelSpec

MAX_FRAME_BYTES = 64 << 20
"""More than any honest frame holds; a longer one is a broken peer."""

MAX_DETAIL_CHARACTERS = 4_000

_LENGTH = struct.Struct("<I")


class Hello(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front, once torch is imported: what this machine has."""

    pid: int
    torch_version: str
    cuda_devices: int


class Load(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to worker: load this model. `config` is a serialized ModelConfig, empty for none;
    `role` a value of `models.spec.Role`; `sweep` asks for what is found out once for all workers:
    which outputs follow the padded length, and timed batches, which may come from the directory
    `cache` and are kept there unless it is empty; `pickle` as in `ModelSource`; `pinned_to` as in
    `Placement`; with `shares_weights` the descriptor of the memory file that holds them is sent
    along."""

    model: str
    version: int
    file: str
    kind: str
    config: bytes
    role: str
    device: str
    threads: int
    sweep: bool
    cache: str
    pickle: bool = False
    pinned_to: tuple[int, ...] = ()
    shares_weights: bool = False


class Progress(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front: what it does now, a value of `WorkerState`."""

    state: str
    detail: str = ""


class Log(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front: a line for the server's log. `level` is a level of the logging module."""

    level: int
    text: str


class Loaded(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front: the model is loaded and warm; batches may come.

    `sweep`: rows, padded length and seconds of batches that were timed, to plan from.
    """

    spec: ModelSpec
    sweep: tuple[tuple[int, int, float], ...] = ()


class LoadFailed(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front: the model cannot be served, and why. The worker ends itself."""

    detail: str


class Slab(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Writer to reader: from now on, slab `index` is the memory behind the descriptor sent along.

    The front writes inputs and the worker outputs: each side owns the memory that it writes.
    """

    index: int
    nbytes: int


class TensorPlace(msgspec.Struct, array_like=True):
    """Where one tensor lies in a slab. `position` is its place in the model's inputs or outputs.

    Tensors whose rows differ in shape are concatenated in one dimension; `row_shapes` then has
    the shape of each row.
    """

    position: int
    offset: int
    nbytes: int
    shape: tuple[int, ...]
    row_offsets: tuple[int, ...] | None = None
    row_shapes: tuple[tuple[int, ...], ...] | None = None


class RowParameters(msgspec.Struct, array_like=True, frozen=True):
    """Custom parameters that `rows` rows in sequence have in common: those of one request."""

    rows: int
    values: dict[str, bool | int | float | str]


class RunBatch(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to worker: run the batch whose inputs lie in slab `slab`.

    `parameters` are those of each request in turn, or None when no request of the batch has any.
    """

    batch_id: int
    slab: int
    tensors: tuple[TensorPlace, ...]
    parameters: tuple[RowParameters, ...] | None = None


class BatchDone(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front: the outputs lie in the worker's slab of the same index."""

    batch_id: int
    slab: int
    tensors: tuple[TensorPlace, ...]
    input_ns: int
    infer_ns: int
    output_ns: int


class BatchError(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Worker to front: the model failed on this batch. `detail` is for logs, not for clients."""

    batch_id: int
    detail: str
    out_of_memory: bool = False


class Stop(msgspec.Struct, tag=True, array_like=True, frozen=True):
    """Front to worker: finish what was sent, unload the model and end."""


FromWorker = Hello | Log | Progress | Loaded | LoadFailed | Slab | BatchDone | BatchError
ToWorker = Load | Slab | RunBatch | Stop

_encoder = msgspec.msgpack.Encoder()
_from_worker: msgspec.msgpack.Decoder[FromWorker] = msgspec.msgpack.Decoder(FromWorker)
_to_worker: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)


class FrameError(Exception):
    """What is no frame, or would be none: its sender is broken and cannot be trusted further."""


def encode(message: FromWorker | ToWorker) -> bytes:
    """One message as a frame. Raises `FrameError` if it is longer than the peer would take."""
    body = _encoder.encode(message)
    if len(body) > MAX_FRAME_BYTES:
        raise FrameError(f"a frame of {len(body)} bytes; at most {MAX_FRAME_BYTES} can be sent")
    return _LENGTH.pack(len(body)) + body


def decode_from_worker(body: bytes) -> FromWorker:
    """Read a frame's body as the front does. Raises `FrameError`."""
    try:
        return _from_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(f"a worker sent a frame that is not one of ours: {error}") from None


def decode_to_worker(body: bytes) -> ToWorker:
    """Read a frame's body as a worker does. Raises `FrameError`."""
    try:
        return _to_worker.decode(body)
    except msgspec.MsgspecError as error:
        raise FrameError(f"the server sent a frame that is not one of ours: {error}") from None


def sendable(detail: str) -> str:
    """Clipped, and without the lone surrogates that no encoder takes."""
    return detail[:MAX_DETAIL_CHARACTERS].encode("utf-8", "backslashreplace").decode()


class FrameSplitter:
    """Cuts a byte stream into frame bodies, whatever pieces it arrives in.

    Args:
        max_bytes: of one body.
    """

    def __init__(self, max_bytes: int = MAX_FRAME_BYTES) -> None:
        self._buffer = bytearray()
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Bodies completed by these bytes, in order. Raises `FrameError` on an absurd length, after
        what came before it."""
        buffer = self._buffer
        buffer += data
        start = 0
        while len(buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(buffer, start)
            if length > self._max_bytes:
                raise FrameError(f"a frame of {length} bytes; at most {self._max_bytes} expected")
            end = start + _LENGTH.size + length
            if len(buffer) < end:
                break
            yield bytes(buffer[start + _LENGTH.size : end])
            start = end
        del buffer[:start]
