"""How much of what a GPU can do is left of it when a model is served, and what serving adds.

    python -m bench.gpu [--models resnet50 encoder] [--rounds 5] [--seconds 8] [--json FILE]

Two networks with random weights, exported: ResNet-50 on images of 224 x 224 (602 kB each), and an
encoder of the size of all-MiniLM-L6-v2 on 64 tokens (0.5 kB). The offline peak is that of a bare
loop in this process over batches that lie on the device already, of whichever size does most
rows per second. The same model is then served, and gets single rows in a closed loop with
`IN_FLIGHT` times that size in flight. Both take turns, round after round; the ratio is the median
over the rounds. At low load one request is in flight: the latency that serving adds is its median
less that of a bare call, copies to and from the device included.

Exits with status 2 where there is no GPU; `--device cpu` tries the benchmark itself out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn import functional

from bench.cost import build_repository as build_mlp
from bench.targets import Target, exit_status, machine, table
from headrace.messages import infer_request
from headrace_server.bench.fleet import Fleet
from headrace_server.bench.orders import Setup
from headrace_server.bench.plan import ClosedLoop, Timing
from headrace_server.bench.sweep import Bench
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.program import Tensor
from headrace_server.models.repository import read_model
from headrace_server.models.warmup import synthetic_inputs, warm_up
from headrace_server.testing import ServerProcess
from headrace_server.workers.sweep_cache import device_name

SHARE = 0.95
"""Of the offline peak that served throughput is to reach."""

IN_FLIGHT = 4
LARGEST = 128
TIMEOUT_S = 60.0
WARM_UP_S = 1.0


class Bottleneck(nn.Module):
    """Three convolutions beside a shortcut (He et al., 2015)."""

    def __init__(self, channels: int, inner: int, stride: int) -> None:
        super().__init__()
        wider = 4 * inner
        self.inner = nn.Sequential(
            *(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, inner, 3, stride, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()),
            *(nn.Conv2d(inner, wider, 1, bias=False), nn.BatchNorm2d(wider)),
        )
        self.shortcut: nn.Module = nn.Identity()
        if channels != wider:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.inner(x) + self.shortcut(x))


def resnet50() -> nn.Module:
    blocks, channels = [], 64
    for inner, count, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for index in range(count):
            blocks.append(Bottleneck(channels, inner, 1 if index else stride))
            channels = 4 * inner
    stem = (nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 1000))
    return nn.Sequential(*stem, nn.MaxPool2d(3, 2, 1), *blocks, *head)


class Layer(nn.Module):
    """Attention and two linear layers, each normalised behind its shortcut."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections, self.output = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.wide, self.narrow = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        split = self.projections(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(split[0], split[1], split[2])
        x = self.first(x + self.output(mixed.transpose(1, 2).flatten(2)))
        mixed = x + self.narrow(functional.gelu(self.wide(x)))
        return cast(torch.Tensor, self.second(mixed))


def encoder() -> nn.Module:
    return nn.Sequential(nn.Embedding(30_522, 384), *(Layer(384, 12) for _ in range(6)))


def _exporter(make: Callable[[], nn.Module], example: torch.Tensor) -> Callable[[Path, str], None]:
    def write(repository: Path, name: str) -> None:
        torch.manual_seed(0)
        directory = repository / name / "1"
        directory.mkdir(parents=True)
        batch = torch.export.Dim("batch", max=LARGEST)
        program = torch.export.export(make().eval(), (example,), dynamic_shapes=({0: batch},))
        torch.export.save(program, directory / "model.pt2")

    return write


MODELS: Mapping[str, Callable[[Path, str], None]] = {
    "resnet50": _exporter(resnet50, torch.zeros(2, 3, 224, 224)),
    "encoder": _exporter(encoder, torch.zeros(2, 64, dtype=torch.int64)),
    "mlp": lambda repository, name: build_mlp(repository),
}


@dataclass(frozen=True, slots=True)
class Round:
    """One turn of a model: rows per second offline and served, and medians of single calls."""

    model: str
    rows: int
    offline_per_s: float
    served_per_s: float
    bare_ms: float
    served_ms: float

    @property
    def share(self) -> float:
        return self.served_per_s / self.offline_per_s

    @property
    def added_ms(self) -> float:
        return self.served_ms - self.bare_ms


def load(repository: Path, name: str, device: str) -> LoadedModel:
    entry = read_model(repository / name)
    assert entry.error is None, entry.error
    model = load_model(entry.versions[0], entry.config, device)
    warm_up(model, entry.config, entry.versions[0])
    return model


def rows_per_s(model: LoadedModel, rows: int, seconds: float) -> float:
    """Of batches on the device, one behind the other: what nobody can serve more of."""
    inputs = _moved(synthetic_inputs(model, rows), model.device)
    model.run(inputs)
    _synchronize(model.device)
    batches, started = 0, time.perf_counter()
    while time.perf_counter() - started < seconds:
        # The clock is read rarely enough to leave the device no gap.
        for _ in range(8):
            model.run(inputs)
        batches += 8
        _synchronize(model.device)
    return batches * rows / (time.perf_counter() - started)


def best_rows(model: LoadedModel, seconds: float) -> int:
    """The batch size that does most rows per second."""
    most = model.spec.max_batch_size
    sizes = [1 << n for n in range(most.bit_length()) if 1 << n <= most]
    return max(sizes, key=lambda rows: rows_per_s(model, rows, seconds / len(sizes)))


def bare_call_ms(model: LoadedModel, seconds: float) -> float:
    """The median of single rows there, through the model and back, one at a time."""
    inputs = synthetic_inputs(model, 1)
    times_s: list[float] = []
    until_s = time.perf_counter() + seconds
    while (started := time.perf_counter()) < until_s:
        _moved(model.run(_moved(inputs, model.device)), "cpu")
        times_s.append(time.perf_counter() - started)
    return statistics.median(times_s) * 1e3


def served(
    address: str, model: LoadedModel, in_flight: Sequence[int], seconds: float
) -> list[tuple[float, float]]:
    """Rows per second and the median in milliseconds for each number of requests in flight."""
    spec = model.spec
    inputs = {
        tensor.name: (value.numpy() if isinstance(value, torch.Tensor) else value, tensor.datatype)
        for tensor, value in zip(spec.inputs, synthetic_inputs(model, 1).values(), strict=True)
    }
    request = infer_request(spec.name, inputs).SerializeToString()
    processes = 2
    setups = [
        Setup(address, "unary", TIMEOUT_S, [request], index, processes, seed=0)
        for index in range(processes)
    ]
    # Nothing agrees within 0, so each step is measured from its begin to its end.
    timing = Timing(WARM_UP_S, seconds, 0.0)
    with Fleet(setups) as fleet:
        bench = Bench(fleet, timing, TIMEOUT_S, lambda: None, lambda load, windows: None)
        steps = list(bench.run([ClosedLoop(count) for count in in_flight]))
    for step in steps:
        if step.errors:
            raise RuntimeError(f"requests failed: {dict(step.errors)}")
    return [(step.throughput, step.latency.p50_s * 1e3) for step in steps]


def measure(name: str, device: str, rounds: int, seconds: float) -> list[Round]:
    found = []
    with tempfile.TemporaryDirectory() as directory:
        repository = Path(directory)
        MODELS[name](repository, name)
        model = load(repository, name, device)
        rows = best_rows(model, seconds)
        kind = "KIND_GPU" if device.startswith("cuda") else "KIND_CPU"
        config = repository / name / "config.pbtxt"
        config.write_text(f"instance_group {{ kind: {kind} count: 1 }}\n")
        with ServerProcess(repository) as server:
            for _ in range(rounds):
                offline = rows_per_s(model, rows, seconds)
                bare_ms = bare_call_ms(model, seconds / 2)
                one, many = served(server.grpc_address, model, (1, IN_FLIGHT * rows), seconds)
                found.append(Round(name, rows, offline, many[0], bare_ms, one[1]))
                print(shown(found[-1]), flush=True)
        model.close()
    return found


def shown(found: Round) -> str:
    return (
        f"{found.model}: batches of {found.rows}: offline {found.offline_per_s:,.0f}/s, served "
        f"{found.served_per_s:,.0f}/s ({found.share:.3f}); one call: bare {found.bare_ms:.2f} ms, "
        f"served {found.served_ms:.2f} ms"
    )


def targets(rounds: Sequence[Round]) -> list[Target]:
    """What each model was to reach, and what it did: median and spread over the rounds."""
    listed = []
    for name in dict.fromkeys(found.model for found in rounds):
        shares = sorted(found.share for found in rounds if found.model == name)
        added = sorted(found.added_ms for found in rounds if found.model == name)
        share = statistics.median(shares)
        listed.append(
            Target(
                f"{name}: served throughput of the offline peak",
                f"at least {SHARE}",
                f"{share:.3f} ({shares[0]:.3f} to {shares[-1]:.3f}); one call takes "
                f"{statistics.median(added):.2f} ms longer ({added[0]:.2f} to {added[-1]:.2f})",
                share >= SHARE,
            )
        )
    return listed


def _moved(tensors: Mapping[str, Tensor], device: str) -> dict[str, Tensor]:
    return {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in tensors.items()
    }


def _synchronize(device: str) -> None:
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=[*MODELS], default=["resnet50", "encoder"])
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8.0, help="for each measurement")
    parser.add_argument("--json", type=Path, help="write every round to this file")
    options = parser.parse_args(arguments)
    if options.device.startswith("cuda") and not torch.cuda.is_available():
        print("bench-gpu needs a CUDA GPU, and torch sees none here", file=sys.stderr)
        return 2
    rounds = [
        found
        for name in options.models
        for found in measure(name, options.device, options.rounds, options.seconds)
    ]
    listed = targets(rounds)
    print(table(listed))
    if options.json:
        report = {**machine(), "device": device_name(options.device)}
        report["rounds"] = [asdict(found) for found in rounds]
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    return exit_status(listed)


if __name__ == "__main__":
    sys.exit(main())
