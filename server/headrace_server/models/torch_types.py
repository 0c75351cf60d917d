"""Which torch dtype carries which datatype of the protocol. Workers only: imports torch."""

from __future__ import annotations

import torch

TORCH_DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "UINT8": torch.uint8,
    "UINT16": torch.uint16,
    "UINT32": torch.uint32,
    "UINT64": torch.uint64,
    "INT8": torch.int8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "FP16": torch.float16,
    "BF16": torch.bfloat16,
    "FP32": torch.float32,
    "FP64": torch.float64,
}
"""Every datatype but BYTES, which travels as a numpy object array of `bytes`."""

DATATYPE_OF: dict[torch.dtype, str] = {dtype: name for name, dtype in TORCH_DTYPES.items()}
