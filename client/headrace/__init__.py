"""Client SDK for Headrace and every other server of the Open Inference Protocol v2.

    >>> from headrace import Client
    >>> with Client("127.0.0.1:8001") as client:
    ...     result = client.infer("digits", {"image": image})

`headrace.aio.AsyncClient` is the same for asyncio, `headrace.errors` what can go wrong,
`headrace.explanations` what `explain` returns, `headrace.protocol` the generated messages and
stubs.
"""

from typing import TYPE_CHECKING

from headrace.access import Tls
from headrace.aio import AsyncClient
from headrace.answers import (
    BatchStatistics,
    Duration,
    IndexEntry,
    InferResult,
    ModelMetadata,
    ModelStatistics,
    ServerMetadata,
    TensorMetadata,
    Timing,
)
from headrace.client import Client
from headrace.errors import (
    Cancelled,
    DeadlineExceeded,
    HeadraceError,
    InternalError,
    InvalidInput,
    InvalidRequest,
    InvalidResponse,
    NotFound,
    PermissionDenied,
    ServerError,
    Unauthenticated,
    Unavailable,
    Unimplemented,
)
from headrace.explanations import ModelExplanation
from headrace.retry import RetryPolicy
from headrace.shared_memory import SharedMemory

__all__ = [
    "AsyncClient",
    "BatchStatistics",
    "Cancelled",
    "Client",
    "DeadlineExceeded",
    "Duration",
    "HeadraceError",
    "IndexEntry",
    "InferResult",
    "InternalError",
    "InvalidInput",
    "InvalidRequest",
    "InvalidResponse",
    "ModelExplanation",
    "ModelMetadata",
    "ModelStatistics",
    "NotFound",
    "PermissionDenied",
    "RetryPolicy",
    "ServerError",
    "ServerMetadata",
    "SharedMemory",
    "TensorMetadata",
    "Timing",
    "Tls",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "__version__",
]

if TYPE_CHECKING:
    __version__: str
else:

    def __getattr__(name: str) -> str:
        if name != "__version__":
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        # On demand: few programs ask, and importlib.metadata is slow to import.
        from importlib.metadata import version

        return version("headrace")
