"""What is typed after `headrace bench` becomes steps of load, or one clear line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import typer

from headrace_server.bench.arrivals import Renewal, Trace
from headrace_server.bench.plan import ClosedLoop, OpenLoop
from headrace_server.cli import bench, commands
from headrace_server.cli.bench_options import Options, loads_of
from headrace_server.cli.errors import CommandError


@pytest.fixture
def typed(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Types `headrace bench m WORD...`; gives the options that the command takes from that."""
    taken: list[Options] = []
    monkeypatch.setattr(bench, "bench", lambda options: taken.append(options) or True)

    def type_words(*words: str) -> Options:
        root: Any = typer.main.get_command(commands.app)
        root.main(["bench", "m", *words], standalone_mode=False)
        return taken.pop()

    return type_words


def refusal(typed: Any, *words: str) -> str:
    with pytest.raises(CommandError) as refused:
        loads_of(typed(*words))
    assert refused.value.status == 2
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_alone_it_sweeps_concurrency(typed: Any) -> None:
    assert loads_of(typed()) == [ClosedLoop(n) for n in (1, 2, 4, 8, 16, 32, 64)]


@pytest.mark.parametrize(
    "words", [("1", "8", "64"), ("1,8,64",), ("1", "8", "64", "--seed", "3"), ("1,8", "64")]
)
def test_a_list_of_numbers_ends_with_the_numbers(typed: Any, words: tuple[str, ...]) -> None:
    options = typed("--concurrency", *words)
    assert loads_of(options) == [ClosedLoop(1), ClosedLoop(8), ClosedLoop(64)]
    assert options.model == "m"


def test_rates_are_open_loop_and_poisson_by_default(typed: Any) -> None:
    assert loads_of(typed("--rate", "100", "2.5")) == [
        OpenLoop(100.0, Renewal(1.0)),
        OpenLoop(2.5, Renewal(1.0)),
    ]


@pytest.mark.parametrize(("text", "cv"), [("poisson", 1.0), ("constant", 0.0), ("gamma:2.5", 2.5)])
def test_arrivals_are_known_by_name(typed: Any, text: str, cv: float) -> None:
    assert loads_of(typed("--rate", "9", "--arrivals", text)) == [OpenLoop(9.0, Renewal(cv))]


def test_a_trace_runs_at_its_own_rate_or_at_those_given(typed: Any, tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("5\n5.25\n\n6\n")
    trace = Trace([5.0, 5.25, 6.0])
    assert loads_of(typed("--arrivals", f"trace:{file}")) == [OpenLoop(2.0, trace)]
    given = loads_of(typed("--arrivals", f"trace:{file}", "--rate", "7"))
    assert given == [OpenLoop(7.0, trace)]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--rate", "1", "--concurrency", "1"), "leave one out"),
        (("--arrivals", "constant"), "expected --rate with it"),
        (("--concurrency", "0"), "expected whole numbers above 0 for --concurrency, got '0'"),
        (("--concurrency", "1.5"), "expected whole numbers above 0"),
        (("--rate", "many"), "expected numbers above 0 for --rate, got 'many'"),
        (("--rate", "nan"), "expected numbers above 0"),
        (("--rate", "1", "--arrivals", "gama:2"), "gamma:CV or trace:FILE, got 'gama:2'"),
        (("--rate", "1", "--arrivals", "gamma:x"), "--arrivals gamma:x: expected a number"),
        (("--rate", "1", "--arrivals", "gamma:-1"), "from 0 to 1000, got -1"),
        (("--rate", "1", "--arrivals", "gamma:1e200"), "from 0 to 1000, got 1e+200"),
        (("--timeout", "inf"), "expected --timeout from 0.001 to 1,000,000,000 seconds, got inf"),
        (("--timeout", "nan"), "expected --timeout from 0.001 to 1,000,000,000 seconds, got nan"),
        (("--timeout", "-1"), "expected --timeout from 0.001"),
        (("--warmup", "inf"), "expected --warmup from 0 to 1,000,000,000 seconds, got inf"),
        (("--warmup", "-1"), "expected --warmup from 0 to"),
        (("--duration", "1e10"), "expected --duration from 0.06 to 1,000,000,000 seconds"),
        (("--duration", "nan"), "expected --duration from 0.06"),
        (("--stable-within", "nan"), "expected --stable-within from 0 to 1,000,000,000 per cent"),
        (("--transport", "pigeon"), "expected --transport unary or stream, got 'pigeon'"),
        (("--shape", "x:3", "--input", "x.npz"), "--shape is for synthetic inputs"),
        (("--json", "/no/such/place/out.json"), "there is no such directory"),
        (("--plot", "out.gif"), "expected --plot FILE that ends in .png, .svg, .pdf"),
    ],
)
def test_what_makes_no_sense_is_one_line(typed: Any, words: tuple[str, ...], expected: str) -> None:
    assert expected in refusal(typed, *words)


def test_a_trace_that_is_none_is_one_line(typed: Any, tmp_path: Path) -> None:
    file = tmp_path / "trace.txt"
    file.write_text("1\ntwo\n")
    assert "expected a number, got 'two'" in refusal(typed, "--arrivals", f"trace:{file}")
    with pytest.raises(CommandError, match="cannot read"):
        loads_of(typed("--arrivals", f"trace:{tmp_path / 'missing'}"))
