"""Doubles numbers, and misbehaves on command: to rehearse what a server does about it.

A request with the parameter `fault` makes the worker that runs it

    exit          end at once, as after `sys.exit` in a library
    kill          be killed by SIGKILL, as by the kernel when memory runs out
    segfault      read from address 0, as a broken extension does
    babble        write nonsense to the server's socket
    hang          sleep for ever
    spin          compute for ever
    slow          take `factor` times as long (10 unless given)
    leak          keep `mebibytes` more for ever (64 unless given)
    out_of_memory ask torch for more memory than any machine has
    raise         raise an exception
    wrong_shape   answer with a row too many
    wrong_count   answer with an output too many
    nan           answer NaN, which is an answer like any other

whoever else rides in the batch. Anything else is answered with an error.

A file beside this one makes every worker that loads the model misbehave: `exit_on_load`,
`hang_on_load` or `raise_on_load`.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from typing import Any

import torch

from headrace_server import Model, TensorSpec
from headrace_server.models.model import ModelContext

SECONDS_PER_BATCH = 0.005


class Faulty(Model):
    inputs = (TensorSpec("x", "FP32", [1]),)
    outputs = (TensorSpec("y", "FP32", [1]),)
    max_batch_size = 16

    def load(self, context: ModelContext) -> None:
        self.leaked: list[bytearray] = []
        if (context.directory / "exit_on_load").exists():
            os._exit(3)
        if (context.directory / "hang_on_load").exists():
            time.sleep(1e9)
        if (context.directory / "raise_on_load").exists():
            raise RuntimeError("asked to fail while loading")

    def forward(self, x: torch.Tensor, parameters: list[dict[str, Any]]) -> Any:
        time.sleep(SECONDS_PER_BATCH)
        y = 2 * x
        for row, told in enumerate(parameters):
            if "fault" in told:
                y = self.misbehave(told["fault"], told, y, row)
        return y

    def misbehave(self, fault: str, told: dict[str, Any], y: torch.Tensor, row: int) -> Any:
        match fault:
            case "exit":
                os._exit(3)
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "segfault":
                ctypes.string_at(0)
            case "babble":
                os.write(int(sys.argv[1]), b"\xff" * 64)
            case "hang":
                time.sleep(1e9)
            case "spin":
                while True:
                    pass
            case "slow":
                time.sleep(SECONDS_PER_BATCH * (float(told.get("factor", 10)) - 1))
            case "leak":
                self.leaked.append(bytearray(os.urandom(1024)) * (1024 * told.get("mebibytes", 64)))
            case "out_of_memory":
                return torch.empty(1 << 50)
            case "raise":
                raise RuntimeError("asked to fail")
            case "wrong_shape":
                return torch.cat([y, y[:1]])
            case "wrong_count":
                return y, y
            case "nan":
                y[row] = torch.nan
            case _:
                raise ValueError(f"expected one of the faults of examples/faults, got {fault!r}")
        return y
