"""Finds parameters of a config.pbtxt that look like ones the server reads, and are none.

Any other name is the model's own, so a slip of the pen would be passed over in silence. Front-safe:
standard library and protobuf only.
"""

from __future__ import annotations

from collections.abc import Iterator
from difflib import get_close_matches

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server.models.batching import HANG_TIMEOUT, MAX_BATCH_BYTES, OBJECTIVE
from headrace_server.models.gpu_options import MEMORY_FRACTION
from headrace_server.models.load_options import COMPILE, PRECISION

READ = (OBJECTIVE, MAX_BATCH_BYTES, HANG_TIMEOUT, COMPILE, PRECISION, MEMORY_FRACTION)
READ_OF_INPUTS = ("pad", "mask", "default")
"""Before a colon and the name of an input."""

ALIKE = 0.75
"""Share of letters, in order, that two names have in common (`difflib`)."""


def doubtful_parameters(config: ModelConfig | None) -> Iterator[str]:
    """A sentence for each name that nearly is one that the server reads."""
    for key in sorted(() if config is None else config.parameters):
        name, colon, rest = key.partition(":")
        known = READ_OF_INPUTS if colon else READ
        if name not in known:
            for close in get_close_matches(name, known, n=1, cutoff=ALIKE):
                yield f"the server does not read parameter '{key}'; is it '{close}{colon}{rest}'?"
