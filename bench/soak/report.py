"""What a soak found, against what was asked of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np

from bench.resources import Holdings
from bench.soak.calls import End, Tally
from bench.soak.disturbances import Bookkeeper, Killer, Reloader
from bench.soak.recovery import Recovery, Remains
from bench.targets import Target, machine

SLABS_PER_WORKER = 4
"""Two for inputs and two for outputs."""

SUCCESS = 0.999
GROWTH = 1.05
RECOVERY_S = 0.3
LAG_S = 2.0
"""A client that is later than that has no time to read its answers either: they wait until the
server refuses more of them, or until their deadlines, and none of it is the server's doing."""
MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Run:
    """The disturbed part. `before` and `after`: what the server held with nothing to do; `settled`:
    whether everything was ready in the end."""

    seconds: float
    capacity: float
    rate: float
    tally: Tally
    killer: Killer
    reloader: Reloader
    books: Bookkeeper
    workers: int
    before: Holdings
    after: Holdings
    settled: bool


@dataclass(frozen=True, slots=True)
class Soak:
    """Everything that was found."""

    seed: int
    run: Run
    exit_status: int
    remains: Remains
    killed_remains: Remains
    recoveries: Sequence[Recovery]

    def early_and_late(self) -> tuple[tuple[float, float], tuple[float, float]]:
        """Bytes of the front, and of the workers, under load: around a tenth of the time, and at
        its end."""
        tenth_s = self.run.seconds / 10
        early, late = (tenth_s / 2, 1.5 * tenth_s), (9 * tenth_s, self.run.seconds)
        books = self.run.books
        return (
            (books.front_bytes(*early), books.front_bytes(*late)),
            (books.worker_bytes(*early), books.worker_bytes(*late)),
        )

    def targets(self) -> list[Target]:
        """Each target, the grave ones first."""
        run, tally = self.run, self.run.tally
        _, workers = self.early_and_late()
        at_rest = run.books.front_at_rest
        half = len(at_rest) // 2
        first, last = median(at_rest[:half]), median(at_rest[half:])
        slabs = SLABS_PER_WORKER * run.workers
        found = [
            *(
                _none(name, tally.total(end))
                for name, end in (
                    ("wrong answers", End.WRONG),
                    ("hung calls", End.HUNG),
                    ("requests lost", End.LOST),
                )
            ),
            Target(
                "how late the client was to send (else the machine is too slow to judge by)",
                f"at most {LAG_S:g} s",
                f"{tally.lag_s:.2f} s",
                tally.lag_s <= LAG_S,
            ),
            Target(
                "calls whose deadline passed without a word",
                "0",
                str(tally.total(End.LATE)),
                not tally.total(End.LATE),
            ),
            Target(
                "valid requests that succeed",
                f"at least {SUCCESS:.1%}",
                f"{tally.success:.3%} of {sum(tally.valid.values()):,}",
                tally.success >= SUCCESS,
            ),
            Target(
                "models and workers once nobody kills them",
                "all ready",
                "all ready" if run.settled else "not all ready",
                run.settled,
                grave=True,
            ),
            Target(
                "reloads that failed",
                "0",
                f"{len(run.reloader.failures)} of "
                f"{len(run.reloader.failures) + sum(run.reloader.reloaded.values())}",
                not run.reloader.failures,
            ),
            _growth("resident memory of the front, while nobody waits", (first, last)),
            _growth("resident memory of the workers", workers),
            Target(
                "open files of the front, after over before",
                "no more",
                f"{run.after.open_files} over {run.before.open_files}",
                run.after.open_files <= run.before.open_files,
            ),
            Target(
                "shared-memory segments of the front",
                f"at most {slabs}",
                str(run.after.slabs),
                run.after.slabs <= slabs,
            ),
            Target("exit status after SIGTERM", "0", str(self.exit_status), not self.exit_status),
            _left("left after SIGTERM", self.remains),
            _left("left after SIGKILL of the server", self.killed_remains),
        ]
        if self.recoveries:
            beyond_s = max(r.beyond_s for r in self.recoveries)
            found.append(
                Target(
                    f"SIGKILL of the only worker to the next answer, {len(self.recoveries)} rounds",
                    f"load time + {RECOVERY_S * 1e3:.0f} ms",
                    f"load time + {beyond_s * 1e3:.0f} ms at most",
                    beyond_s <= RECOVERY_S,
                )
            )
        return found

    def summary(self) -> str:
        """What was done, in a sentence or two."""
        run, tally = self.run, self.run.tally
        early, late = (nbytes / MIB for nbytes in self.early_and_late()[0])
        p50, p99 = np.percentile(tally.latencies_s or [0.0], [50, 99])
        of_capacity = f" ({run.rate / run.capacity:.0%} of {run.capacity:,.0f})"
        refusals = ", ".join(f"{n} {why}" for why, n in tally.refusals.most_common()) or "none"
        return (
            f"{run.seconds:,.0f} s at {run.rate:,.0f} requests per second{of_capacity}, with "
            f"{sum(run.killer.killed.values())} workers killed and "
            f"{sum(run.reloader.reloaded.values())} models reloaded: "
            f"{sum(tally.valid.values()):,} valid requests, {tally.valid[End.CANCELLED]:,} of them "
            f"cancelled, and {sum(tally.bad.values()):,} bad ones; median {p50 * 1e3:,.0f} ms, "
            f"99th percentile {p99 * 1e3:,.0f} ms. Valid requests refused: {refusals}. Under load "
            f"the front held {early:,.0f} MiB around a tenth of the time, {late:,.0f} at its end "
            "(medians), with what waits behind killed workers."
        )

    def raw(self) -> dict[str, Any]:
        """Everything, for a file."""
        run, tally = self.run, self.run.tally
        return {
            **machine(),
            "seconds": run.seconds,
            "capacity_per_s": run.capacity,
            "rate_per_s": run.rate,
            "seed": self.seed,
            "targets": [
                {"name": t.name, "asked": t.asked, "found": t.found, "verdict": t.verdict}
                for t in self.targets()
            ],
            "valid": {end.value: count for end, count in tally.valid.items()},
            "bad": {end.value: count for end, count in tally.bad.items()},
            "refusals": dict(tally.refusals),
            "examples": tally.examples,
            "lag_s": tally.lag_s,
            "latency_s": {
                f"p{q:g}": float(np.percentile(tally.latencies_s or [0.0], q))
                for q in (50, 90, 99, 99.9, 100)
            },
            "killed": dict(run.killer.killed),
            "reloaded": dict(run.reloader.reloaded),
            "reload_failures": run.reloader.failures,
            "recoveries": [{"took_s": r.took_s, "load_s": r.load_s} for r in self.recoveries],
            "front_at_rest_mib": [round(n / MIB, 1) for n in run.books.front_at_rest],
            "before": _held(run.before),
            "after": _held(run.after),
            "readings": [
                {"at_s": round(r.at_s, 1), **_held(r.held)} for r in run.books.readings[::10]
            ],
        }


def _held(held: Holdings) -> dict[str, Any]:
    return {
        "front_mib": round(held.front_bytes / MIB, 1),
        "worker_mib": {name: round(n / MIB, 1) for name, n in held.worker_bytes.items()},
        "open_files": held.open_files,
        "slabs": held.slabs,
    }


def _none(name: str, count: int) -> Target:
    return Target(name, "0", str(count), count == 0, grave=True)


def _growth(name: str, early_and_late: tuple[float, float]) -> Target:
    early, late = early_and_late
    ratio = late / early if early else 0.0
    return Target(
        f"{name}, at the end over a tenth of the time",
        f"at most {GROWTH:.2f}x",
        f"{ratio:.3f}x ({late / MIB:,.0f} over {early / MIB:,.0f} MiB)",
        0 < ratio <= GROWTH,
    )


def _left(name: str, remains: Remains) -> Target:
    found = "nothing"
    if remains:
        found = f"{len(remains.processes)} processes, {len(remains.files)} files"
    return Target(name, "nothing", found, not remains, grave=True)
