"""The load generator behind `headrace bench`: needs numpy and the SDK, nothing of the server.

What can be computed (`arrivals`, `plan`, `inputs`, `results`) is apart from what waits: `generator`
sends the load of one process, `fleet` starts such processes, `sweep` decides how long each step
of a plan goes on.
"""
