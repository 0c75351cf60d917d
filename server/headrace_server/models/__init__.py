"""Models: the repository that holds them, what they say of themselves, and how they are loaded.

The front process imports `spec`, `repository`, `config_text`, `batching`, `completion` and
`errors`, which never import torch. Only workers import `loading`, `warmup` and what these need.
"""
