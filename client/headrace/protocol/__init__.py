"""The protocol's messages and stubs, generated from `protos/headrace/protocol/*.proto`.

Everything else in this folder is written by `protos/generate.py`.

The modules register their messages in a descriptor pool of their own. Other clients of the same
protocol (tritonclient, KServe) register the same full names in protobuf's default pool, and
protobuf refuses a second registration, whichever library is imported first. With a pool of our own
both can live in one process. Whatever looks messages up by name, such as server reflection, must
be given this pool.
"""

from google.protobuf.descriptor_pool import DescriptorPool

__all__ = ["POOL"]

POOL = DescriptorPool()
