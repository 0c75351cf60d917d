"""What the load generator of `headrace bench` can drive itself, against a bare gRPC echo.

    python -m bench.generator [--concurrency 1 8 64] [--processes 1] [--seconds 6]

The echo is Python too and takes about as much CPU for each call as the generator, so one process
of it is the limit; the generator's own limit follows from its CPU per request.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence

import numpy as np

from bench.cost import echo_server
from bench.processes import usage
from headrace.messages import infer_request
from headrace_server.bench.fleet import Fleet
from headrace_server.bench.orders import Setup
from headrace_server.bench.plan import ClosedLoop, Timing
from headrace_server.bench.sweep import Bench

FLOATS = 784


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--concurrency", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=6.0, help="per step")
    options = parser.parse_args(arguments)
    image = np.random.default_rng(0).random((1, FLOATS), dtype=np.float32)
    request = infer_request("mlp", {"image": (image, "FP32")}).SerializeToString()
    # Nothing agrees within 0, so each step is measured from its begin to its end, like the CPU.
    timing = Timing(warmup_s=0.0, duration_s=options.seconds, tolerance=0.0)
    with echo_server() as (echo, address):
        setups = [
            Setup(address, "unary", 10.0, [request], index, options.processes, seed=0)
            for index in range(options.processes)
        ]
        with Fleet(setups) as fleet:
            bench = Bench(fleet, timing, 10.0, lambda: None, lambda load, windows: None)
            for concurrency in options.concurrency:
                everything, answering = usage(os.getpid()), usage(echo)
                (step,) = bench.run([ClosedLoop(concurrency)])
                cpu_s = usage(os.getpid()).since(everything) - usage(echo).since(answering)
                print(
                    f"{concurrency:>4} in flight  {step.throughput:8,.0f}/s  "
                    f"p50 {step.latency.p50_s * 1e3:6.2f} ms  "
                    f"p99 {step.latency.p99_s * 1e3:6.2f} ms  "
                    f"generator busy {step.generation.busy:4.0%}"
                    f"  {cpu_s / step.requests * 1e6:4.0f} us of CPU per request"
                )
    return 0


if __name__ == "__main__":
    sys.exit(main())
