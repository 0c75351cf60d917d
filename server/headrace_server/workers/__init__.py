"""Workers: processes that hold one instance of a model each, and the executors that run them.

`executor.py` is the interface the engine sees. `process.py` is the front's side of a worker
process, `nursery.py` where it comes from, `worker_main.py` the process itself, `frames.py` and
`slab.py` what travels between them.
"""
