"""A fuzz of the real server: spoilt requests, spoilt streams, spoilt bytes on the socket.

    python -m bench.fuzz [--requests 100000] [--seed N] [--json docs/fuzz.json] [--document FILE]
                         [--failure fuzz-failure.json]
    python -m bench.fuzz --replay fuzz-failure.json

Hypothesis makes the cases, from valid requests changed field by field to bytes that are no HTTP/2
at all; they are sent many at once while other callers ("canaries") check every answer that they
get. Any answer that is not the right one, code that is not in the table, call that hangs, worker
that is lost or line of the log that tells of an unexpected error ends the run: the seed is printed,
and the cases are written to a file that `--replay` sends again. Exit status 1 then, or when
memory, descriptors or canaries are not as they should be.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import secrets
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st

from bench.checked_models import FUZZED, build
from bench.fuzz.cases import Case, read_cases, write_cases
from bench.fuzz.driver import Driver
from bench.fuzz.mutations import CASES
from bench.resources import Holdings, holdings, middle, open_files, workers
from bench.targets import Target, exit_status, machine, replace_section, table
from headrace_server.testing import ServerProcess

AT_ONCE = 12
"""Cases that are sent together, and so may ride together."""

GROWTH = 1.10
"""Resident memory in the last quarter of the requests, over that in the second one."""

MIB = 1 << 20

READINGS = 20
"""Of what the server holds, along the way."""

ALARMS = ("Traceback", '"error"', '"critical"')
"""In a line of the log: nothing that a client sends is an error of the server."""


class BrokenServerError(Exception):
    """The server did what it must not; the text has one line for each thing."""


class Trial:
    """One server under fire."""

    def __init__(self, server: ServerProcess, driver: Driver, loop: asyncio.AbstractEventLoop):
        self._server = server
        self._driver = driver
        self._loop = loop
        self._workers = set(workers(server.pid))
        self._log_from = len(server.log)
        self.requests = self.cases = 0
        self.readings: list[tuple[int, Holdings]] = []

    def fire(self, cases: Sequence[Case]) -> None:
        """Send these together. Raises `BrokenServerError`."""
        sent = asyncio.run_coroutine_threadsafe(self._driver.send(cases), self._loop)
        problems = sent.result()
        self.cases += len(cases)
        self.requests += sum(case.requests for case in cases)
        self.check(problems)

    def check(self, problems: Sequence[str] = ()) -> None:
        """Look at the server. Raises `BrokenServerError` for that, or for what is known already."""
        found = [*problems]
        living = set(workers(self._server.pid))
        if open_files(self._server.pid) == 0:
            found.append("the server is gone")
        elif living != self._workers:
            found.append(f"workers were lost: {len(self._workers - living)}")
        lines = self._server.log[self._log_from :]
        self._log_from += len(lines)
        found += [line.strip()[:2_000] for line in lines if any(alarm in line for alarm in ALARMS)]
        if found:
            raise BrokenServerError("\n".join(found))

    def read(self) -> None:
        """Write down what the server holds."""
        self.readings.append((self.requests, holdings(self._server.pid)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--seed", type=int, help="default: another one each time")
    parser.add_argument("--replay", type=Path, help="send the cases of this file instead")
    parser.add_argument("--failure", type=Path, default=Path("fuzz-failure.json"))
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--document", type=Path, help="put the targets into its section `fuzz`")
    options = parser.parse_args(arguments)
    if options.replay:
        return replay(read_cases(options.replay), options.failure)
    seed = secrets.randbits(32) if options.seed is None else options.seed
    began_s = time.monotonic()
    with trial() as (target, driver):
        try:
            fuzz(target, options.requests, seed, options.failure)
        except BrokenServerError as broken:
            print(f"seed {seed}, after {target.requests:,} requests:\n{broken}")
            print(f"the cases again: python -m bench.fuzz --replay {options.failure}")
            return 1
        target.read()
        ends, answers = dict(driver.ends.most_common()), driver.canary_answers
    took_s = time.monotonic() - began_s
    targets = judge(target, answers)
    summary = (
        f"{target.requests:,} requests in {target.cases:,} calls and connections, seed {seed}, in "
        f"{took_s:,.0f} s; meanwhile {answers:,} answers to other callers, every one of them right."
    )
    print(f"{summary}\n\n{table(targets)}\n\nends: {ends}")
    if options.json:
        raw = {
            **machine(),
            "seed": seed,
            "requests": target.requests,
            "cases": target.cases,
            "took_s": round(took_s, 1),
            "canary_answers": answers,
            "ends": ends,
            "targets": [{"name": t.name, "found": t.found, "verdict": t.verdict} for t in targets],
            "front_mib": [(n, round(h.front_bytes / MIB, 1)) for n, h in target.readings],
        }
        options.json.write_text(json.dumps(raw, indent=1) + "\n")
    if options.document:
        replace_section(options.document, "fuzz", f"{summary}\n\n{table(targets)}")
    return exit_status(targets)


def fuzz(target: Trial, requests: int, seed: int, failure: Path) -> None:
    """Fire until so many requests were sent.

    Raises:
        BrokenServerError: the cases that did it are in `failure` then.
    """
    broken: list[BrokenServerError] = []

    @seeded(seed)
    @settings(
        max_examples=10 * requests,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=[*HealthCheck],
    )
    @given(st.lists(CASES, min_size=AT_ONCE, max_size=AT_ONCE))
    def attack(cases: list[Case]) -> None:
        if target.requests >= requests:
            raise Enough
        if len(target.readings) * requests <= READINGS * target.requests:
            target.read()
            print(f"{target.requests:,} requests ...", file=sys.stderr, flush=True)
        try:
            target.fire(cases)
        except BrokenServerError as error:
            write_cases(failure, cases)
            broken.append(error)
            raise Enough from None

    with suppress(Enough):
        attack()
    if broken:
        raise broken[0]
    target.check()


class Enough(BaseException):
    """Enough was sent, or the server is broken: not for Hypothesis to repeat and shrink. What one
    server does with a case depends on what others send meanwhile."""


def judge(target: Trial, canary_answers: int) -> list[Target]:
    """What was held, against what may be."""
    sizes = [held.front_bytes for _, held in target.readings]
    quarter = max(1, len(sizes) // 4)
    # Medians: a dozen large streams at once are a moment's matter. Before the first quarter the
    # server warms up.
    early, late = middle(sizes[quarter : 2 * quarter]), middle(sizes[-quarter:])
    ratio = late / early
    found = f"{ratio:.3f}x ({late / MIB:,.0f} MiB; {max(sizes) / MIB:,.0f} at most)"
    return [
        Target("requests", "crashes, hangs, wrong answers, codes of no table: 0", "0", True),
        Target("right answers to other callers", "all", f"{canary_answers:,}", canary_answers > 0),
        Target(
            "resident memory of the front, in the last quarter over the second one",
            f"at most {GROWTH:.2f}x",
            found,
            ratio <= GROWTH,
        ),
    ]


def replay(cases: list[Case], failure: Path) -> int:
    """Each case alone, then all together; the first that breaks something is kept in `failure`."""
    with trial() as (target, _):
        for chosen in [*([case] for case in cases), cases]:
            try:
                target.fire(chosen)
                time.sleep(0.2)  # for the log
                target.check()
            except BrokenServerError as broken:
                write_cases(failure, chosen)
                print(f"{len(chosen)} of {len(cases)} cases are enough:\n{chosen}\n{broken}")
                return 1
    print(f"{len(cases)} cases, each alone and all together: nothing broke")
    return 0


@contextmanager
def trial() -> Iterator[tuple[Trial, Driver]]:
    """A server with the models of the fuzz, and callers on a loop in a thread of its own."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)

    def run(coroutine: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result()

    with tempfile.TemporaryDirectory(prefix="fuzz-") as directory:
        repository = Path(directory) / "repository"
        build(repository, FUZZED)
        with ServerProcess(repository, "--cache-dir", "none") as server:
            thread.start()
            driver = run(_driver(server.grpc_address))
            try:
                yield Trial(server, driver, loop), driver
            finally:
                run(driver.stop())
                loop.call_soon_threadsafe(loop.stop)
                thread.join()
                loop.close()


async def _driver(address: str) -> Driver:
    driver = Driver(address)
    await driver.start()
    return driver


if __name__ == "__main__":
    sys.exit(main())
