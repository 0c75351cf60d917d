"""A LitServe service: JSON with base64 of the tensor, or with the text; numbers as JSON out.

LitServe reads JSON or forms only. Base64 costs it less than 784 numbers in digits.
"""

import base64

import litserve
import numpy as np
from networks import Order, load

ORDER = Order.received()
SHAPE = {"mlp": (784,), "images": (3, 224, 224)}.get(ORDER.workload)


class Network(litserve.LitAPI):
    def setup(self, device):
        self.network = load(ORDER.workload, ORDER.directory)

    def decode_request(self, request):
        if SHAPE is None:
            return np.array([request["text"].encode()], dtype=object)
        return np.frombuffer(base64.b64decode(request["input"]), np.float32).reshape(SHAPE)

    def batch(self, inputs):
        return np.stack(inputs)

    def predict(self, x):
        return self.network(x if ORDER.rows > 1 else x[None].copy())

    def unbatch(self, output):
        return list(output)

    def encode_response(self, output):
        return output.ravel().tolist()


if __name__ == "__main__":
    api = Network(max_batch_size=ORDER.rows, batch_timeout=ORDER.delay_ms / 1e3)
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True)
    server.run(
        host="127.0.0.1",
        port=ORDER.port,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
    )
