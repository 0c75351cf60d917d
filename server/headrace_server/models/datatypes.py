"""The protocol's datatypes (`FP32`, `BYTES`) and their names in a config.pbtxt (`TYPE_FP32`)."""

from __future__ import annotations

from headrace.protocol.model_config_pb2 import DataType

_PREFIX = "TYPE_"


def config_type(datatype: str) -> DataType.ValueType:
    """Return the enum value of a protocol datatype; `BYTES` is `TYPE_STRING` there."""
    return DataType.Value(config_type_name(datatype))


def config_type_name(datatype: str) -> str:
    """Return what a config.pbtxt calls a protocol datatype."""
    return _PREFIX + ("STRING" if datatype == "BYTES" else datatype)


def protocol_type(data_type: DataType.ValueType) -> str:
    """Return the protocol datatype of an enum value other than `TYPE_INVALID`."""
    name = DataType.Name(data_type).removeprefix(_PREFIX)
    return "BYTES" if name == "STRING" else name
