"""Every reason for which Headrace refuses or fails a request, and the exception that carries it."""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """Why a request got no answer. The value is the word used in metrics and ErrorInfo.

    `transport/status.py` maps each one to a gRPC code, an HTTP code and the public text.
    """

    UNKNOWN_MODEL = "unknown_model"
    UNKNOWN_VERSION = "unknown_version"
    MODEL_UNAVAILABLE = "model_unavailable"

    MALFORMED_MESSAGE = "malformed_message"
    WRONG_INPUT_COUNT = "wrong_input_count"
    UNKNOWN_INPUT = "unknown_input"
    DUPLICATE_INPUT = "duplicate_input"
    UNKNOWN_OUTPUT = "unknown_output"
    DUPLICATE_OUTPUT = "duplicate_output"
    WRONG_DATATYPE = "wrong_datatype"
    WRONG_SHAPE = "wrong_shape"
    WRONG_BYTE_COUNT = "wrong_byte_count"
    WRONG_ELEMENT_COUNT = "wrong_element_count"
    MALFORMED_CONTENTS = "malformed_contents"
    MIXED_CONTENTS = "mixed_contents"
    WRONG_RAW_COUNT = "wrong_raw_count"
    UNEQUAL_ROWS = "unequal_rows"
    UNEQUAL_LENGTHS = "unequal_lengths"
    BATCH_TOO_LARGE = "batch_too_large"
    REQUEST_TOO_LARGE = "request_too_large"
    INVALID_PARAMETER = "invalid_parameter"

    UNKNOWN_REGION = "unknown_region"
    REGION_EXISTS = "region_exists"
    REGION_UNUSABLE = "region_unusable"
    REGIONS_OVERLAP = "regions_overlap"
    REGION_TOO_SMALL = "region_too_small"

    QUEUE_FULL = "queue_full"
    QUEUE_TIMEOUT = "queue_timeout"
    PREDICTED_LATE = "predicted_late"
    OVERLOADED = "overloaded"
    OBJECTIVE_MISSED = "objective_missed"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    STOPPING = "stopping"
    CANCELLED = "cancelled"

    WORKER_LOST = "worker_lost"
    MODEL_FAILED = "model_failed"
    OUT_OF_MEMORY = "out_of_memory"

    UNAUTHENTICATED = "unauthenticated"
    NOT_ALLOWED = "not_allowed"
    RATE_LIMITED = "rate_limited"
    ANSWERS_UNREAD = "answers_unread"

    MODEL_CONTROL_REFUSED = "model_control_refused"
    NOT_IN_REPOSITORY = "not_in_repository"
    LOAD_FAILED = "load_failed"
    UNSUPPORTED = "unsupported"
    INTERNAL = "internal"


class ServingError(Exception):
    """A request that gets an error: the reason, and the details that its public text names.

    `details` are plain values (names, shapes, counts); they fill the placeholders of the text in
    `transport/status.py` and never hold internals such as paths or tracebacks.
    """

    def __init__(self, reason: Reason, **details: object) -> None:
        self.reason = reason
        self.details = details
        self.counted = False
        """Whether an observer has been told of it."""
        super().__init__(reason.value, details)

    def __str__(self) -> str:
        listed = ", ".join(f"{name}={value!r}" for name, value in self.details.items())
        return f"{self.reason.value}({listed})"
