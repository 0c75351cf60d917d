"""`model.py` of Headrace for the models that are plain networks."""

import os

import torch
from networks import NETWORKS

from headrace_server import Model, ModelContext, TensorSpec

SHAPES = {"mlp": ([784], [10]), "images": ([3, 224, 224], [3])}
GIVEN, ANSWERED = SHAPES[os.environ["PEERS_WORKLOAD"]]


class Network(Model):
    inputs = (TensorSpec("input", "FP32", GIVEN),)
    outputs = (TensorSpec("output", "FP32", ANSWERED),)
    max_batch_size = 64

    def load(self, context: ModelContext) -> None:
        self.network = NETWORKS[context.name]()

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return self.network(input)
