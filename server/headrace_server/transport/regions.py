"""Triton's system shared memory extension: which regions are registered, and who refers to them.

Requests name a region where their contents would be. Each owner has names of its own; without
tokens there is one owner, nobody in particular.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping

from headrace.protocol import grpc_service_pb2 as pb
from headrace_server.core.errors import Reason, ServingError
from headrace_server.workers.regions import Region, RegionError, Span

REGION_PARAMETER = "shared_memory_region"
SIZE_PARAMETER = "shared_memory_byte_size"
OFFSET_PARAMETER = "shared_memory_offset"

MAX_REGIONS = 256
"""Registered at the same time: each holds a descriptor, and processes often have 1,024."""

FEATURE = "system shared memory, without --allow-client-shm,"

Parameters = Mapping[str, pb.InferParameter]
SpanFinder = Callable[[Parameters], Span]


def refuse_spans(parameters: Parameters) -> Span:
    """The finder of a server that shares no memory. Raises `ServingError`."""
    raise ServingError(Reason.UNSUPPORTED, feature=FEATURE)


class RegionTable:
    """The registered regions of one server, by owner and name."""

    def __init__(self) -> None:
        self._regions: dict[tuple[str, str], Region] = {}

    def register(self, owner: str, message: pb.SystemSharedMemoryRegisterRequest) -> None:
        """Open a region under a new name.

        Raises:
            ServingError: REGION_EXISTS, REGION_UNUSABLE.
        """
        # What a client left behind that was killed goes when the next one comes.
        self._regions = {k: r for k, r in self._regions.items() if not r.abandoned}
        name = message.name
        if (owner, name) in self._regions:
            raise ServingError(Reason.REGION_EXISTS, region=name)
        try:
            if not name or not message.byte_size:
                raise RegionError("invalid args: expected a name, and at least one byte")
            if len(self._regions) >= MAX_REGIONS:
                raise RegionError(f"expected at most {MAX_REGIONS} regions at the same time")
            region = Region(name, message.key, message.offset, message.byte_size)
        except RegionError as error:
            problem = f"failed to register shared memory region '{name}': {error}"
            raise ServingError(Reason.REGION_UNUSABLE, problem=problem) from None
        self._regions[owner, name] = region

    def unregister(self, owner: str, name: str) -> None:
        """Forget a region, or all of this owner's where the name is empty; nothing happens to
        requests that use it already, or where there is none of that name."""
        self._regions = {
            key: region
            for key, region in self._regions.items()
            if key != (owner, name) and (name or key[0] != owner)
        }

    def status(self, owner: str, name: str) -> pb.SystemSharedMemoryStatusResponse:
        """One region, or all of this owner's where the name is empty. Raises `ServingError`."""
        chosen = [self._find(owner, name)] if name else self._of(owner)
        answer = pb.SystemSharedMemoryStatusResponse()
        for region in chosen:
            entry = answer.regions[region.name]
            entry.name, entry.key = region.name, region.key
            entry.offset, entry.byte_size = region.offset, region.nbytes
        return answer

    def span(self, owner: str, parameters: Parameters) -> Span:
        """The part of a region that the parameters of a tensor name.

        Raises:
            ServingError: UNKNOWN_REGION, REGION_UNUSABLE.
        """
        region = self._find(owner, parameters[REGION_PARAMETER].string_param)
        try:
            nbytes = number_of(parameters, SIZE_PARAMETER)
            return region.span(number_of(parameters, OFFSET_PARAMETER), nbytes)
        except RegionError as error:
            raise ServingError(Reason.REGION_UNUSABLE, problem=error) from None

    def _find(self, owner: str, name: str) -> Region:
        region = self._regions.get((owner, name))
        if region is None:
            raise ServingError(Reason.UNKNOWN_REGION, region=name)
        return region

    def _of(self, owner: str) -> list[Region]:
        return [region for (its_owner, _), region in self._regions.items() if its_owner == owner]


def describe(span: Span, parameters: MutableMapping[str, pb.InferParameter]) -> None:
    """Say in the parameters of an output that its contents lie here."""
    region = span.region
    parameters[REGION_PARAMETER].string_param = region.name
    parameters[SIZE_PARAMETER].int64_param = span.nbytes
    parameters[OFFSET_PARAMETER].int64_param = span.begin - region.offset


def number_of(parameters: Parameters, name: str) -> int:
    """A size or an offset, 0 where none is given."""
    if name not in parameters:
        return 0
    choice = parameters[name].WhichOneof("parameter_choice")
    value = getattr(parameters[name], choice) if choice else None
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise RegionError(f"parameter '{name}': expected a whole number, at least 0, got {value!r}")
    return value
