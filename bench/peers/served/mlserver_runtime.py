"""A runtime of MLServer for the models that are plain networks."""

from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceResponse
from networks import Order, load


class Network(MLModel):
    async def load(self):
        order = Order.received()
        self.network = load(order.workload, order.directory)
        return True

    async def predict(self, payload):
        answers = self.network(NumpyCodec.decode_input(payload.inputs[0]).copy())
        return InferenceResponse(
            model_name=self.name,
            id=payload.id,
            outputs=[NumpyCodec.encode_output("output", answers)],
        )
