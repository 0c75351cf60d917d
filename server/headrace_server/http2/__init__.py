"""HTTP/2 for a server (RFC 9113, RFC 7541): frames, headers, flow control, connections.

Knows nothing of gRPC. Bytes come in by a `Connection`, which hands them to its streams; what the
streams send leaves together, once per turn of the event loop.
"""
