"""Processes in front of the engine that accept connections on one port and feed it.

A front reads and checks requests and writes answers, as the engine's own process does where there
are no fronts; the queues, the workers and all that is counted stay in that one process. Tensors
cross in memory that both share. Inference alone is served here: every other call is passed on.
"""
