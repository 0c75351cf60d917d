"""`model.py` of Triton's Python backend, for every model."""

import os
import sys

# Some builds of the stub embed a Python that does not look at PYTHONPATH.
sys.path[:0] = os.environ["PYTHONPATH"].split(os.pathsep)

import numpy as np  # noqa: E402
import triton_python_backend_utils as pb_utils  # noqa: E402
from networks import Order, load  # noqa: E402


class TritonPythonModel:
    def initialize(self, args):
        order = Order.received()
        self.network = load(order.workload, order.directory)
        text = order.workload == "sentences"
        self.given, self.answered = ("text", "embedding") if text else ("input", "output")

    def execute(self, requests):
        arrays = [
            pb_utils.get_input_tensor_by_name(request, self.given).as_numpy()
            for request in requests
        ]
        answers = self.network(np.concatenate(arrays) if len(arrays) > 1 else arrays[0])
        responses, start = [], 0
        for array in arrays:
            end = start + len(array)
            tensor = pb_utils.Tensor(self.answered, answers[start:end])
            responses.append(pb_utils.InferenceResponse([tensor]))
            start = end
        return responses
