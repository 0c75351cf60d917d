"""HTTP in front of the server: a process of its own that asks the engine's process over gRPC."""
