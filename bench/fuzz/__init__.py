"""Requests that no client would send, by the hundred thousand, against the real server."""
