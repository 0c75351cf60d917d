"""Install the peers, run every scenario, write the report: `python -m bench.peers --out docs`.

    python -m bench.peers [--servers headrace triton] [--scenarios sentences] [--minutes 17]
    python -m bench.peers --report docs/benchmarks.json    # write the report anew, measure nothing

What cannot be installed or started is said in the report, and the rest goes on.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

import torch

from bench.peers.environments import UnavailableError
from bench.peers.match import Clock, Match, install
from bench.peers.plots import draw
from bench.peers.report import report
from bench.peers.results import Findings
from bench.peers.scenarios import SCENARIOS
from bench.peers.servers import PEERS
from bench.peers.workloads import workloads


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--servers", nargs="+", choices=PEERS, default=list(PEERS))
    keys = [scenario.key for scenario in SCENARIOS]
    parser.add_argument("--scenarios", nargs="+", choices=keys, default=keys)
    parser.add_argument("--minutes", type=float, default=17.0, help="installation included")
    parser.add_argument("--scale", type=float, default=1.0, help="of the length of each run")
    parser.add_argument("--out", type=Path, default=Path("docs"), help="folder for what is written")
    parser.add_argument("--report", type=Path, help="write the report of these raw data only")
    options = parser.parse_args(arguments)
    if options.report:
        write(Findings.from_json(options.report.read_text()), options.out)
        return 0
    scenarios = [scenario for scenario in SCENARIOS if scenario.key in options.scenarios]
    try:
        for scenario in scenarios:
            scenario.tuning.require()
    except UnavailableError as error:
        print(f"bench.peers: {error} (or choose --scenarios without it)", file=sys.stderr)
        return 1
    # As Ctrl-C does, so that every server is ended on the way out.
    previous = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    clock, findings = Clock(options.minutes * 60), Findings(machine(), os.getloadavg()[0])

    def say(line: str) -> None:
        # In one piece: installations report from threads.
        sys.stdout.write(f"{clock.elapsed_s:6.0f} s {line.rstrip()}\n")
        sys.stdout.flush()

    try:
        say("-- Installation")
        peers = install({key: PEERS[key] for key in options.servers}, findings, say)
        findings.versions = {peer.name: peer.version for peer in peers.values()}
        with tempfile.TemporaryDirectory(prefix="peers-") as directory:
            models = workloads(Path(directory))
            with Match(peers, models, scenarios, findings, say, options.scale) as match:
                match.play_all(clock)
    finally:
        signal.signal(signal.SIGTERM, previous)
        findings.wall_s = clock.elapsed_s
        if findings.runs:
            write(findings, options.out)
            say(f"-- Written: {options.out}/BENCHMARKS.md, benchmarks.json, benchmarks.png")
    return 0


def write(findings: Findings, directory: Path) -> None:
    """Raw data, pictures and report into `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "benchmarks.json").write_text(findings.to_json())
    pictures = [file.name for file in draw(findings, directory)]
    (directory / "BENCHMARKS.md").write_text(report(findings, pictures))


def machine() -> dict[str, str]:
    """What the figures depend on beside the servers."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    model = re.search(r"model name\s*: (.*)", cpuinfo)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    try:
        h2load = subprocess.check_output(["h2load", "--version"], text=True)
    except FileNotFoundError:
        h2load = "none"
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": f"{os.cpu_count()} cores, {model[1] if model else platform.machine()}, "
        f"{memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "h2load": h2load.strip(),
    }


if __name__ == "__main__":
    sys.exit(main())
