"""A mosec service: raw little-endian FP32 or UTF-8 in, raw FP32 out."""

import numpy as np
from mosec import Server, Worker
from networks import Order, load

ORDER = Order.received()
SHAPE = {"mlp": (784,), "images": (3, 224, 224)}.get(ORDER.workload)


class Network(Worker):
    def __init__(self):
        self.network = load(ORDER.workload, ORDER.directory)

    def deserialize(self, data):
        if SHAPE is None:
            return np.array([bytes(data)], dtype=object)
        return np.frombuffer(data, np.float32).reshape(SHAPE)

    def forward(self, data):
        if ORDER.rows == 1:  # mosec hands in a list only where it may batch
            return self.network(data[None].copy())[0]
        return list(self.network(np.stack(data)))

    def serialize(self, data):
        return data.tobytes()


if __name__ == "__main__":
    server = Server()
    server.append_worker(
        Network, num=1, max_batch_size=ORDER.rows, max_wait_time=max(1, round(ORDER.delay_ms))
    )
    server.run()
