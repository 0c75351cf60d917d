"""What clients talk to: gRPC services, conversion between messages and calls, public errors."""
