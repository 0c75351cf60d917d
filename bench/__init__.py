"""Benchmarks: what the server costs, measured beside something to compare it with."""
