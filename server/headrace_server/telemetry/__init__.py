"""Prometheus metrics and logs: observers of what the engine does. Nothing depends on them."""
