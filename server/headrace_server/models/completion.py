"""The complete configuration of a loaded model: what clients get who ask for it.

Front-safe: standard library and protobuf only.
"""

from __future__ import annotations

from collections.abc import Sequence

from headrace.protocol.model_config_pb2 import (
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
)
from headrace_server.models.datatypes import config_type
from headrace_server.models.spec import ModelSpec

_FILENAMES = {
    "pytorch_pt2": "model.pt2",
    "pytorch_libtorch": "model.pt",
    "python": "model.py",
}


def complete_config(
    spec: ModelSpec,
    config: ModelConfig | None = None,
    instance_groups: Sequence[ModelInstanceGroup] = (),
) -> ModelConfig:
    """Return ``config`` with everything filled in that it leaves open; blocks it has are kept.

    Args:
        spec: the model's signature, already reconciled with ``config``.
        config: what was written for the model, if anything.
        instance_groups: where the model's workers are, used if ``config`` does not say.
    """
    complete = ModelConfig()
    if config is not None:
        complete.CopyFrom(config)
    complete.name = spec.name
    complete.backend = "python" if spec.platform == "python" else "pytorch"
    complete.platform = "" if spec.platform == "python" else spec.platform
    complete.max_batch_size = spec.max_batch_size
    if not complete.version_policy.WhichOneof("policy_choice"):
        complete.version_policy.latest.num_versions = 1
    if not complete.default_model_filename:
        complete.default_model_filename = _FILENAMES[spec.platform]
    if not complete.instance_group:
        complete.instance_group.extend(instance_groups)

    inputs = {entry.name: entry for entry in complete.input}
    outputs = {entry.name: entry for entry in complete.output}
    del complete.input[:], complete.output[:]
    for tensor in spec.inputs:
        entry = inputs.get(tensor.name, ModelInput(name=tensor.name))
        entry.data_type = config_type(tensor.datatype)
        entry.dims[:] = tensor.shape
        entry.optional = tensor.optional
        complete.input.append(entry)
    for tensor in spec.outputs:
        output = outputs.get(tensor.name, ModelOutput(name=tensor.name))
        output.data_type = config_type(tensor.datatype)
        output.dims[:] = tensor.shape
        complete.output.append(output)
    return complete
