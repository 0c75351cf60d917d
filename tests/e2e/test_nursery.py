"""A forked worker is to its model what a fresh process would be; nothing of its birth shows."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.aio import AsyncClient
from headrace_server.testing import ServerProcess
from headrace_server.workers.nursery import CAN_FORK
from worker_processes import alive, children_of, nursery_of, workers_of
from written_models import write_model

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(not CAN_FORK, reason="forks on Linux alone"),
]

SECONDS = 60.0
TWO_WORKERS = "instance_group { kind: KIND_CPU count: 2 }"

TELLTALE = """
    import faulthandler
    import gc
    import json
    import logging
    import multiprocessing
    import os
    import random
    import signal
    import sys
    import threading
    from pathlib import Path

    import numpy as np
    import torch
    from headrace_server import Model, TensorSpec

    def status(field):
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(line.split()[1] for line in lines if line.startswith(field + ":"))

    class Telltale(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]

        def load(self, context):
            links = {}
            for number in os.listdir("/proc/self/fd"):
                try:
                    links[number] = os.readlink(f"/proc/self/fd/{number}")
                except OSError:
                    pass  # of the listing itself
            found = []
            thread = threading.Thread(target=lambda: found.append("a thread"))
            thread.start()
            thread.join()
            answers = {}
            for method in ("fork", "spawn"):
                pool = multiprocessing.get_context(method).Pool(1)
                answers[method] = pool.apply(abs, (-3,))
                pool.terminate()
                pool.join()
            same = {
                "threads": torch.get_num_threads(),
                "openmp": os.environ["OMP_NUM_THREADS"],
                "started": found,
                "answers": answers,
                "main": [sys.modules["__main__"].__spec__.name, sys.modules["__main__"].__name__],
                "argv": [sys.argv[0], len(sys.argv), *sys.orig_argv[:4], len(sys.orig_argv)],
                "stdin": links["0"],
                "stdout": links["1"] == links["2"],
                "sockets": sum(link.startswith("socket:") for link in links.values()),
                "pipes": sum(
                    link.startswith("pipe:") and number not in "012"
                    for number, link in links.items()
                ),
                "leads": os.getsid(0) == os.getpgid(0) == os.getpid(),
                "blocked": status("SigBlk"),
                "ignored": status("SigIgn"),
                "caught": status("SigCgt"),
                "faulthandler": faulthandler.is_enabled(),
                "collects": gc.isenabled(),
                "frozen": gc.get_freeze_count() > 0,
                "handlers": [type(h).__name__ for h in logging.getLogger().handlers],
                "cuda": torch.cuda.is_initialized() or torch.cuda._is_in_bad_fork(),
                "affinity": sorted(os.sched_getaffinity(0)),
                "oom": Path("/proc/self/oom_score_adj").read_text(),
                "cwd": os.getcwd(),
            }
            own = [os.getpid(), random.random(), np.random.rand(), torch.rand(1).item()]
            told = context.directory / f"{os.getpid()}.json"
            told.write_text(json.dumps([same, own]))

        def forward(self, x):
            return x
"""


HANGS = """
    import time
    from headrace_server import Model, TensorSpec

    class Hangs(Model):
        inputs = [TensorSpec("x", "INT64", [1])]
        outputs = [TensorSpec("y", "INT64", [1])]

        def load(self, context):
            (context.directory / "hangs").touch()
            while True:
                time.sleep(1000)

        def forward(self, x):
            return x
"""


def told(repository: Path, **environment: str) -> tuple[list[dict[str, Any]], list[list[Any]], str]:
    """What two workers find themselves to be, what is each one's own, and the server's log."""
    write_model(repository, "telltale", TELLTALE, TWO_WORKERS)
    flags = ("--cores", "2", "--cache-dir", "none")
    with ServerProcess(repository, *flags, environment=environment) as server:
        workers = workers_of(server.pid)
        files = [repository / "telltale" / "1" / f"{pid}.json" for pid in workers]
        found = [json.loads(file.read_text()) for file in files]
    return [same for same, _ in found], [own for _, own in found], "".join(server.log)


def test_a_forked_worker_is_like_one_from_scratch_but_for_what_must_differ(tmp_path: Path) -> None:
    forked, own, log = told(tmp_path / "forked")
    assert "from scratch" not in log
    # Where it has a second thread, the nursery executes what it forks, and says so. This one is
    # OpenBLAS's, which ends it at the first fork.
    mixed, _, log = told(tmp_path / "mixed", OPENBLAS_NUM_THREADS="2")
    assert log.count("started from scratch: its nursery has 2 threads") == 1
    assert forked[0] == forked[1] == mixed[0] == mixed[1]
    assert forked[0]["threads"] == 1
    assert forked[0]["stdin"] == "/dev/null"
    assert (forked[0]["sockets"], forked[0]["pipes"]) == (1, 0)
    for one, other in zip(*own, strict=True):
        assert one != other


async def test_a_nursery_that_is_killed_costs_no_request(tmp_path: Path) -> None:
    write_model(tmp_path, "telltale", TELLTALE)
    server = await asyncio.to_thread(ServerProcess(tmp_path).start)
    try:
        async with asyncio.timeout(SECONDS), AsyncClient(server.grpc_address) as client:

            async def call() -> int:
                x = np.array([[7]])
                return int((await client.infer("telltale", {"x": x}, timeout=30.0))["y"][0, 0])

            nursery, (worker,) = nursery_of(server.pid), workers_of(server.pid)
            os.kill(nursery, signal.SIGKILL)
            while nursery in children_of(server.pid):  # not even as a zombie
                await asyncio.sleep(0.01)
            assert await call() == 7
            assert workers_of(server.pid) == [worker]
            os.kill(worker, signal.SIGKILL)
            assert await call() == 7
            assert nursery_of(server.pid) != nursery
            assert worker not in children_of(server.pid)
    finally:
        status = await asyncio.to_thread(server.stop)
    assert status == 0
    assert any("worker 0 of model 'telltale' killed by SIGKILL" in line for line in server.log)
    assert any("the nursery killed by SIGKILL" in line for line in server.log)


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
async def test_nursery_and_workers_end_with_a_server_that_has_not_started_yet(
    tmp_path: Path, end: signal.Signals
) -> None:
    write_model(tmp_path, "hangs", HANGS)
    server = ServerProcess(tmp_path)
    starting = asyncio.create_task(asyncio.to_thread(server.start))
    async with asyncio.timeout(SECONDS):
        while not (tmp_path / "hangs" / "1" / "hangs").exists():
            await asyncio.sleep(0.02)
        children = children_of(server.pid)
        assert len(children) == 2
        os.kill(server.pid, end)
        with pytest.raises(RuntimeError):  # it never became ready
            await starting
        while any(map(alive, children)):
            await asyncio.sleep(0.02)
