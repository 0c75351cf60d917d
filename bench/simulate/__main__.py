"""The policies of batching on simulated workers, side by side.

    python -m bench.simulate [--quick] [--out docs] [--processes 2]
                             [--findings FILE [--again cv4 mlp]]

Prints a report in Markdown and writes it to `simulation.md`, beside the raw data and pictures. What
was simulated is the same from run to run; decisions are timed, which wants a quiet machine. So
findings of the points can be taken from an earlier run, and the decisions timed anew (requests that
are not alike are simulated anew, in ten minutes, and what foresight is worth is, in 15); with
`--again`, but for the points of any of these profiles, arrivals or numbers of workers (`4w`), where
a change of the scheduler or of a profile shows.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from bench.simulate import decisions, foresight
from bench.simulate.mixtures import measure as measure_mixtures
from bench.simulate.report import report
from bench.simulate.study import Finding, examine, full, merged, quick


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="a taste; too little to judge by")
    parser.add_argument("--out", type=Path, help="directory to write to (default: write nothing)")
    parser.add_argument("--findings", type=Path, help="raw data to take the simulations from")
    parser.add_argument("--again", nargs="+", default=[], help="but not of these points")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    study = quick() if options.quick else full()
    # Alone on the machine, as far as that is up to us.
    times = decisions.measure(requests=study.timed_requests, rounds=study.timed_rounds)
    mixtures = measure_mixtures(
        seconds=study.closed_s, requests=study.mixed_requests, seeds=study.seeds
    )
    standings = list(
        foresight.measure(
            study.clocked,
            study.loads,
            requests=study.clocked_requests,
            seeds=study.seeds,
            processes=options.processes,
        )
    )
    if options.findings:
        kept = json.loads(options.findings.read_text())
        findings = msgspec.convert(kept["findings"], list[Finding])
        anew = examine(study.of(set(options.again)), processes=options.processes)
        findings = merged(study, findings, anew)
    else:
        findings = examine(study, processes=options.processes)
    pictures: list[Path] = []
    if options.out:
        options.out.mkdir(parents=True, exist_ok=True)
        try:
            from bench.simulate.plots import draw
        except ModuleNotFoundError as error:
            print(f"no pictures without {error.name}: install the extra `plot`", file=sys.stderr)
        else:
            pictures = draw(study, findings, options.out)
    text = report(study, findings, times, mixtures, standings, pictures)
    print(text)
    if options.out:
        (options.out / "simulation.md").write_text(text)
        raw = {
            "loads": study.loads,
            "findings": [asdict(finding) for finding in findings],
            "mixtures": asdict(mixtures),
            "foresight": [asdict(standing) for standing in standings],
            "decisions": [asdict(t) for t in times],
        }
        (options.out / "simulation.json").write_text(json.dumps(raw) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
