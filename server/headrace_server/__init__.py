"""Headrace: a gRPC inference server for PyTorch models. Users import what a model.py needs."""

from headrace_server.models.model import Model, ModelContext
from headrace_server.models.spec import TensorSpec

__all__ = ["Model", "ModelContext", "TensorSpec"]
