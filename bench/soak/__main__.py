"""A soak: load, and everything that goes wrong in production, for ten minutes; then the books.

    python -m bench.soak [--seconds 600] [--rate N] [--kill-every 5] [--reload-every 20]
                         [--deadline 30] [--recoveries 5] [--seed 0] [--log FILE]
                         [--json docs/soak.json] [--document FILE]

Three models on a real server get an open loop of requests at 70 % of what they can carry, which is
measured first. Workers are killed, models reloaded, calls cancelled, and some requests are bad.
Every answer is checked, and in the end what the server holds and leaves behind. What the front
holds is looked at twice while nobody waits, after a tenth of the time and at the end: under load it
is mostly requests that wait behind killed workers. Before all that an only
worker is killed, to take the time to the next answer, and a server, to see what is left of it.

Exit status 1: an answer was wrong, a call hung or was lost, or something was left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import numpy as np

from bench.checked_models import NETWORK, SOAKED, build
from bench.resources import holdings, workers
from bench.soak.calls import Tally, bad_calls, valid_calls
from bench.soak.disturbances import Bookkeeper, Killer, Reloader, settle, settled_holdings
from bench.soak.recovery import kill_the_server, recover, what_is_left
from bench.soak.report import Run, Soak
from bench.soak.traffic import ONCE, Mix, Traffic
from bench.targets import exit_status, replace_section, table
from headrace import AsyncClient
from headrace_server.testing import ServerProcess

PAUSES = (0.08, 0.02, 0.02, 0.84, 0.02, 0.02)
"""Shares of the time, after each of which nobody asks for a while, so that the front's memory can
be read: three times around a tenth of the time and three at its end. What a moment of long queues
leaves in Python's arenas, some 10 MiB of 80, goes with the requests that follow, not in a pause."""

LOAD = 0.7
"""Share of the capacity that is asked for."""

DIFFERENT_CALLS = 64
"""Of each model."""


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--rate", type=float, help="requests per second (default: 70 %% capacity)")
    parser.add_argument("--calibrate", type=float, default=10.0, help="seconds")
    parser.add_argument("--kill-every", type=float, default=5.0, help="seconds; 0: never")
    parser.add_argument("--reload-every", type=float, default=20.0, help="seconds; 0: never")
    parser.add_argument("--deadline", type=float, default=30.0, help="seconds, of each request")
    parser.add_argument("--recoveries", type=int, default=5, help="rounds")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--log", type=Path, help="write the server's log to this file")
    parser.add_argument("--json", type=Path, help="write everything to this file")
    parser.add_argument("--document", type=Path, help="put the targets into its section `soak`")
    options = parser.parse_args(arguments)
    found = soak(options)
    targets = found.targets()
    print(f"\n{found.summary()}\n\n{table(targets)}")
    for example in found.run.tally.examples + found.run.reloader.failures:
        print(example)
    if options.json:
        options.json.write_text(json.dumps(found.raw(), indent=1) + "\n")
    if options.document:
        replace_section(options.document, "soak", f"{found.summary()}\n\n{table(targets)}")
    return exit_status(targets)


def soak(options: argparse.Namespace) -> Soak:
    """All of it."""
    good = valid_calls(SOAKED, np.random.default_rng(options.seed), DIFFERENT_CALLS)
    first_of_each = good[::DIFFERENT_CALLS]
    with tempfile.TemporaryDirectory(prefix="soak-") as directory:
        repository, alone = Path(directory) / "repository", Path(directory) / "alone"
        build(repository, SOAKED)
        build(alone, (NETWORK,))
        (alone / NETWORK.name / "config.pbtxt").unlink()  # which asks for two workers
        flags = (
            *("--model-control-mode", "explicit", "--load-model", "*"),
            *("--cache-dir", str(Path(directory) / "cache")),
        )
        say("killing the only worker of a server")
        recoveries = recover(alone, first_of_each[0], options.recoveries, flags)
        say("killing a server under load")
        temporary = Path(directory) / "temporary"
        temporary.mkdir()
        killed = kill_the_server(repository, first_of_each, flags, temporary)
        mix = Mix(good, bad_calls(good), deadline_s=options.deadline)
        place = {"TMPDIR": str(temporary)}
        server = ServerProcess(repository, *flags, environment=place).start()
        try:
            run = asyncio.run(disturb(server, mix, options))
            status = server.stop()
        finally:
            server.kill()
            if options.log:
                options.log.write_text("".join(server.log))
        remains = what_is_left(sorted(run.books.pids), temporary)
    return Soak(options.seed, run, status, remains, killed, recoveries)


async def disturb(server: ServerProcess, mix: Mix, options: argparse.Namespace) -> Run:
    """Load, kills and reloads, from a server that has nothing to do to one that has nothing to
    do."""
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(
                AsyncClient(server.grpc_address, retry=ONCE, multiplex=multiplex)
            )
            for multiplex in (False, True)
        ]
        traffic = Traffic(clients, mix, options.seed)
        say("measuring the capacity")
        # Also where the rate is given: what is opened or mapped when first used, is.
        capacity = await traffic.capacity(options.calibrate)
        rate = LOAD * capacity if options.rate is None else options.rate
        traffic.tally = Tally()
        expected = len(workers(server.pid))
        before = holdings(server.pid)
        killer, books = Killer(server.pid, options.seed), Bookkeeper(server.pid)
        reloader = Reloader(server.grpc_address, [model.name for model in SOAKED])
        disturbances = [asyncio.create_task(books.run())]
        if options.kill_every:
            disturbances.append(asyncio.create_task(killer.run(options.kill_every)))
        if options.reload_every:
            disturbances.append(asyncio.create_task(reloader.run(options.reload_every)))
        say(f"{rate:,.0f} requests per second for {options.seconds:,.0f} s")
        for share in PAUSES:
            await traffic.run(rate, share * options.seconds)
            await traffic.finish()
            await books.rest()
        for task in disturbances[1:]:
            task.cancel()
        settled = await settle(clients[0], server.pid, expected)
        disturbances[0].cancel()
        await asyncio.gather(*disturbances, return_exceptions=True)
        after = await settled_holdings(server.pid, before)
    return Run(
        options.seconds,
        capacity,
        rate,
        traffic.tally,
        killer,
        reloader,
        books,
        expected,
        before,
        after,
        settled,
    )


def say(text: str) -> None:
    """Progress, for whoever waits ten minutes."""
    print(f"{text} ...", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
