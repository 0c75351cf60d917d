"""gRPC over HTTP/2, as its PROTOCOL-HTTP2 document lays it down: calls, messages, status, server.

In the place of grpc.aio's server, whose cost per call is mostly the kernel's switching between its
thread and the loop's. Clients cannot tell the difference.
"""
