"""Models that are compiled or run in another precision: the same answers, nearly, and no surprises.

What needs TorchInductor is skipped where there is no C++ compiler; the logic around it runs there
with backends that compile nothing.
"""

from __future__ import annotations

import inspect
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server import Model, TensorSpec
from headrace_server.models.compilation import compile_modules, compiled_graphs
from headrace_server.models.errors import ConfigError, ModelError
from headrace_server.models.exported_graph import plain_function
from headrace_server.models.load_options import LoadOptions, slow_here
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.precision import LoweredLinear, lower_module
from headrace_server.models.python_networks import speed_up
from headrace_server.models.repository import ModelKind, ModelSource, read_model
from headrace_server.models.spec import ModelSpec
from headrace_server.models.warmup import warm_up

WIDTH, OUTPUTS = 320, 352
"""Wide enough for int8."""

TOLERANCE = {"bf16": 0.02, "int8": 0.03}
"""Largest difference that a precision may make, relative to the largest number of the answer."""

LARGEST = f"""
import torch
from headrace_server.models.precision import lower_module

torch.manual_seed(0)
plain = torch.nn.Linear({WIDTH}, {OUTPUTS})
with torch.inference_mode():
    plain.weight.copy_(torch.sign(plain.weight) * (1 + torch.rand_like(plain.weight) / 100))
    for rows in (1, 5, 64):
        x = torch.sign(torch.randn(rows, {WIDTH})) * (1 - torch.rand(rows, {WIDTH}) / 100)
        expected = plain(x)
        layer, _ = lower_module(torch.nn.Sequential(plain), "int8")
        assert (layer(x) - expected).abs().max() < {TOLERANCE["int8"]} * expected.abs().max()
"""

needs_compiler = pytest.mark.skipif(
    not (shutil.which("g++") or shutil.which("clang++")),
    reason="TorchInductor needs a C++ compiler",
)


class Network(torch.nn.Module):
    """x [rows, length, 320] -> scores [rows, length, 352], total [rows, 8]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.first = torch.nn.Linear(WIDTH, OUTPUTS)
        self.second = torch.nn.Linear(OUTPUTS, OUTPUTS, bias=False)
        self.last = torch.nn.Linear(OUTPUTS, 8)
        self.register_buffer("shift", torch.full((OUTPUTS,), 0.5))

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = self.second(torch.relu(self.first(x))) + self.shift
        return {"scores": scores, "total": self.last(scores.sum(1))}


def save_exported(file: Path) -> None:
    rows, length = torch.export.Dim("rows", max=16), torch.export.Dim("length", max=64)
    program = torch.export.export(
        Network().eval(), (torch.zeros(2, 5, WIDTH),), dynamic_shapes=({0: rows, 1: length},)
    )
    torch.export.save(program, file)


PYTHON = f"""
from headrace_server import Model, TensorSpec
from options_network import Network

class Served(Model):
    inputs = [TensorSpec("x", "FP32", [-1, {WIDTH}])]
    outputs = [
        TensorSpec("scores", "FP32", [-1, {OUTPUTS}]), TensorSpec("total", "FP32", [8])
    ]
    max_batch_size = 16

    def load(self, context):
        self.network = Network().eval()

    def forward(self, x):
        return self.network(x)
"""


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    yield
    torch.compiler.set_stance("default")
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = False


@pytest.fixture(params=[ModelKind.EXPORTED, ModelKind.PYTHON], ids=["exported", "python"])
def directory(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A model's directory without a config."""
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    if request.param is ModelKind.EXPORTED:
        save_exported(version / "model.pt2")
    else:
        header = f"import torch\nWIDTH, OUTPUTS = {WIDTH}, {OUTPUTS}\n\n"
        (version / "options_network.py").write_text(header + inspect.getsource(Network))
        (version / "model.py").write_text(PYTHON)
    return version.parent


def load(directory: Path, *parameters: str, config: str = "") -> LoadedModel:
    for text in parameters:
        key, value = text.split("=")
        config += f'\nparameters {{ key: "{key}" value {{ string_value: "{value}" }} }}'
    if config:
        (directory / "config.pbtxt").write_text(config)
    entry = read_model(directory)
    assert entry.error is None, entry.error
    model = load_model(entry.versions[0], entry.config, "cpu")
    warm_up(model, entry.config, entry.versions[0])
    return model


def relative_difference(one: torch.Tensor, other: torch.Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


def test_bound_weights_change_no_bit_of_an_answer() -> None:
    network = Network().eval()
    rows = torch.export.Dim("rows", max=16)
    program = torch.export.export(network, (torch.zeros(2, 5, WIDTH),), dynamic_shapes=({0: rows},))
    function, count = plain_function(program)
    assert count == 0
    with torch.inference_mode():
        for size in (1, 2, 7):
            x = torch.randn(size, 5, WIDTH)
            scores, total = function(x)
            assert torch.equal(scores, network(x)["scores"])
            assert torch.equal(total, network(x)["total"])


class TestPrecision:
    @pytest.mark.parametrize("precision", TOLERANCE)
    def test_answers_are_close_and_of_the_declared_type(
        self, directory: Path, precision: str
    ) -> None:
        model = load(directory, f"precision={precision}")
        network = Network().eval()
        for shape in ((1, 1), (2, 5), (16, 33)):
            x = torch.randn(*shape, WIDTH)
            answer = model.run({"x": x})
            with torch.inference_mode():
                expected = network(x)
            for name, value in expected.items():
                assert answer[name].dtype == torch.float32
                difference = relative_difference(answer[name], value)
                assert 0 < difference < TOLERANCE[precision]

    @pytest.mark.parametrize("precision", TOLERANCE)
    def test_the_signature_is_that_of_the_model_as_it_is(
        self, directory: Path, precision: str
    ) -> None:
        assert load(directory, f"precision={precision}").spec == load(directory).spec

    def test_no_answer_depends_on_who_else_rides(self, directory: Path) -> None:
        model = load(directory, "precision=int8")
        x = torch.randn(4, 5, WIDTH)
        alone = model.run({"x": x[:1]})["scores"]
        crowd = torch.cat([x[:1], x[1:] * 1_000])
        together = model.run({"x": crowd})["scores"][:1]
        assert relative_difference(together, alone) < 1e-5

    @pytest.mark.parametrize("precision", TOLERANCE)
    def test_where_it_is_worth_it_no_kernel_is_the_reference(
        self, precision: str, capfd: pytest.CaptureFixture[str]
    ) -> None:
        if slow_here(precision):
            pytest.skip(f"this CPU has no instructions for {precision}")
        layer, _ = lower_module(torch.nn.Linear(WIDTH, OUTPUTS), precision)
        mkldnn = torch.backends.mkldnn
        with torch.inference_mode(), mkldnn.verbose(mkldnn.VERBOSE_ON):
            for rows in (1, 5, 64):
                layer(torch.randn(rows, WIDTH))
        # onednn_verbose,v1,primitive,exec,cpu,matmul,<implementation>,...
        said = [line.split(",") for line in capfd.readouterr().out.splitlines()]
        used = {words[6] for words in said if words[3:5] == ["exec", "cpu"]}
        assert used
        assert not {name for name in used if name.startswith("ref")}

    @pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "DEFAULT"])
    def test_sums_are_right_without_vnni_and_amx_too(self, instructions: str) -> None:
        """Where two products share 16 bits, weights and inputs at their largest overflow first."""
        environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": instructions}
        subprocess.run([sys.executable, "-c", LARGEST], env=environment, check=True)

    def test_small_layers_and_others_types_are_left_as_they_are(self) -> None:
        network = Network()
        network.second.double()
        network, count = lower_module(network, "int8")
        assert count == 1
        assert isinstance(network.first, LoweredLinear)
        assert type(network.second) is type(network.last) is torch.nn.Linear

    def test_modules_that_read_weights_themselves_still_run(self) -> None:
        layer = torch.nn.TransformerEncoderLayer(32, 2, 64, batch_first=True).eval()
        network, count = lower_module(torch.nn.Sequential(layer, torch.nn.Linear(32, 8)), "bf16")
        assert count == 1
        with torch.inference_mode():
            assert network(torch.zeros(1, 3, 32)).shape == (1, 3, 8)

    def test_rows_of_zeros_and_of_nothing_have_answers(self) -> None:
        layer, _ = lower_module(torch.nn.Linear(WIDTH, OUTPUTS), "int8")
        with torch.inference_mode():
            assert torch.isfinite(layer(torch.zeros(2, WIDTH))).all()
            assert layer(torch.full((1, WIDTH), torch.nan)).isnan().all()

    def test_a_model_without_linear_layers_is_refused(self, tmp_path: Path) -> None:
        version = tmp_path / "m" / "1"
        version.mkdir(parents=True)
        example = (torch.zeros(2, 3),)
        program = torch.export.export(torch.nn.ReLU(), example)
        torch.export.save(program, version / "model.pt2")
        with pytest.raises(ModelError, match="found none"):
            load(version.parent, "precision=bf16")

    @pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
    def test_layers_with_hooks_stay_as_they_are(self) -> None:
        normed = torch.nn.utils.weight_norm(torch.nn.Linear(4, 4))
        parametrized = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(4, 4))
        scaled, doubled, plain = (torch.nn.Linear(4, 4) for _ in range(3))
        scaled.register_forward_hook(lambda module, inputs, output: 10 * output)
        doubled.register_forward_pre_hook(lambda module, inputs: (2 * inputs[0],))
        left = [normed, parametrized, scaled, doubled]
        network, count = lower_module(torch.nn.Sequential(*left, plain), "bf16")
        assert count == 1
        assert [*network.children()][:4] == left

    def test_a_gpu_worker_is_refused(self) -> None:
        model = holding(torch.nn.Linear(4, 4))
        with pytest.raises(ModelError, match="for CPU workers, not for cuda:0"):
            speed_up(model, LoadOptions(precision="bf16"), "cuda:0", Path("model.py"))


def holding(*networks: torch.nn.Module) -> Model:
    class Served(Model):
        pass

    model = Served()
    for index, network in enumerate(networks):
        setattr(model, f"network_{index}", network)
    return model


@pytest.mark.parametrize("options", [LoadOptions("default"), LoadOptions(precision="int8")])
def test_a_model_that_keeps_no_network_is_refused(options: LoadOptions) -> None:
    with pytest.raises(ModelError, match="Served keeps none"):
        speed_up(holding(), options, "cpu", Path("model.py"))


class _Program:
    """A Python model's program around one network, without the file."""

    def __init__(self, network: torch.nn.Module, max_batch_size: int = 16) -> None:
        self._network = network
        self.example_shapes: dict[str, Any] = {}
        x = TensorSpec("x", "FP32", [-1, WIDTH])
        y = TensorSpec("scores", "FP32", [-1, OUTPUTS])
        total = TensorSpec("total", "FP32", [8])
        self.spec = ModelSpec("m", 1, "python", max_batch_size, (x,), (y, total))

    def call(self, inputs: Any, parameters: Any) -> object:
        return self._network(inputs["x"])

    def close(self) -> None:
        pass


SOURCE = ModelSource("m", 1, Path("m/1/model.py"), ModelKind.PYTHON)


class TestCompilingPythonModels:
    @pytest.mark.parametrize("backend", ["eager", "aot_eager"])
    def test_the_warm_up_compiles_and_requests_never_do(self, backend: str) -> None:
        network = Network().eval()
        compile_modules([network], "default", backend)
        model = LoadedModel(_Program(network), "cpu", compiles_when_called=True)
        warm_up(model, None, SOURCE)
        graphs = compiled_graphs()
        for shape in ((1, 16), (1, 7), (2, 16), (3, 40), (16, 9), (5, 1)):
            x = torch.randn(*shape, WIDTH)
            with torch.inference_mode():
                expected = Network().eval()(x)
            torch.testing.assert_close(model.run({"x": x})["scores"], expected["scores"])
        assert compiled_graphs() == graphs

    def test_inputs_that_the_model_refuses_cannot_compile_it(self) -> None:
        class Refuses(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                raise ValueError("no zeros here")

        network = Refuses()
        compile_modules([network], "default", "eager")
        model = LoadedModel(_Program(network), "cpu", compiles_when_called=True)
        with pytest.raises(ModelError, match=r"no zeros here.*give inputs with"):
            warm_up(model, None, SOURCE)

    def test_a_network_that_is_never_called_is_no_success(self) -> None:
        compile_modules([Network()], "default", "eager")
        model = LoadedModel(_Program(Network().eval()), "cpu", compiles_when_called=True)
        with pytest.raises(ModelError, match="compiled nothing"):
            warm_up(model, None, SOURCE)

    def test_too_many_shapes_to_compile_end_in_an_error(self) -> None:
        class Grows(torch.nn.Module):
            calls = 0

            def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
                self.calls += 1
                total = torch.zeros(x.shape[0], 8) + self.calls
                return {"scores": x[..., :1].expand(-1, -1, OUTPUTS) + 0, "total": total}

        network = Grows()
        compile_modules([network], "default", "eager")
        model = LoadedModel(_Program(network), "cpu", compiles_when_called=True)
        config = ModelConfig()
        warmup = config.model_warmup.add(name="often", batch_size=2, count=30)
        warmup.inputs["x"].data_type = 11
        warmup.inputs["x"].dims.extend([4, WIDTH])
        warmup.inputs["x"].zero_data = True
        with pytest.raises(ModelError, match=r"(?i)recompile.*limit"):
            warm_up(model, config, SOURCE)


def test_torchscript_runs_as_it_is(tmp_path: Path) -> None:
    version = tmp_path / "m" / "1"
    version.mkdir(parents=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(torch.nn.ReLU()), str(version / "model.pt"))
    with pytest.raises(ConfigError, match="TorchScript runs as it is"):
        load(version.parent, "compile=true")


def test_without_a_compiler_compile_is_refused(directory: Path) -> None:
    with (
        torch._inductor.config.patch({"cpp.cxx": ("no-such-compiler",)}),
        pytest.raises(ModelError, match=r"needs a C\+\+ compiler .* found none"),
    ):
        load(directory, "compile=true")


@needs_compiler
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning", "ignore::FutureWarning")
def test_compiled_models_answer_the_same(directory: Path) -> None:
    model = load(directory, "compile=true")
    for shape in ((1, 2), (2, 5), (16, 33)):
        x = torch.randn(*shape, WIDTH)
        with torch.inference_mode():
            expected = Network().eval()(x)
        for name, value in expected.items():
            torch.testing.assert_close(model.run({"x": x})[name], value, rtol=1e-4, atol=1e-4)


class Lookup(torch.nn.Module):
    """ids and mask [rows, length] -> {"sums": [rows, 8], "marks": [rows, length]}."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.words = torch.nn.Embedding(100, 8)
        self.positions = torch.nn.Embedding(64, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> dict[str, torch.Tensor]:
        x = self.words(ids) + self.positions.weight[: ids.shape[1]]
        return {"sums": (x * mask.unsqueeze(-1)).sum(1), "marks": x.sum(-1)}


PACKAGE = """
max_batch_size: 16
input [ { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] },
        { name: "mask" data_type: TYPE_BOOL dims: [ -1 ] } ]
output [ { name: "marks" data_type: TYPE_FP32 dims: [ -1 ] },
         { name: "sums" data_type: TYPE_FP32 dims: [ 8 ] } ]
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An AOTInductor package of `Lookup`."""
    rows, length = torch.export.Dim("rows", max=32), torch.export.Dim("length", max=64)
    ids = torch.zeros(2, 5, dtype=torch.int64)
    program = torch.export.export(
        Lookup().eval(),
        (),
        {"ids": ids, "mask": ids.bool()},
        dynamic_shapes={"ids": {0: rows, 1: length}, "mask": {0: rows, 1: length}},
    )
    file = tmp_path_factory.mktemp("package") / "model.pt2"
    with warnings.catch_warnings(action="ignore"):
        torch._inductor.aoti_compile_and_package(program, package_path=str(file))
    return file.read_bytes()


@needs_compiler
@pytest.mark.timeout(600)
class TestPackages:
    @pytest.fixture
    def directory(self, tmp_path: Path, package: bytes) -> Path:
        version = tmp_path / "m" / "1"
        version.mkdir(parents=True)
        (version / "model.pt2").write_bytes(package)
        return version.parent

    def test_a_declared_package_answers_as_the_model(self, directory: Path) -> None:
        model = load(directory, config=PACKAGE)
        for rows, length in ((1, 1), (2, 5), (16, 64)):
            ids = torch.randint(0, 100, (rows, length))
            mask = torch.rand(rows, length) < 0.5
            with torch.inference_mode():
                expected = Lookup().eval()(ids, mask)
            answer = model.run({"ids": ids, "mask": mask})
            torch.testing.assert_close(answer["sums"], expected["sums"])
            torch.testing.assert_close(answer["marks"], expected["marks"])

    @pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="only Linux shows")
    def test_nothing_that_was_unpacked_is_left_on_disk(self, directory: Path) -> None:
        load(directory, config=PACKAGE)
        maps = Path("/proc/self/maps").read_text().splitlines()
        mapped = [line for line in maps if "/aotinductor_" in line]
        assert mapped
        assert all(line.endswith("(deleted)") for line in mapped)

    def test_lengths_that_it_was_compiled_for_bound_the_requests(self, directory: Path) -> None:
        spec = load(directory, config=PACKAGE).spec
        assert [tensor.bounds for tensor in spec.inputs] == [((0, 64),), ((0, 64),)]
        assert spec.max_batch_size == 16

    def test_lengths_that_must_be_equal_are_kept_equal(self, directory: Path) -> None:
        model = load(directory, config=PACKAGE)
        assert model.spec.one_length == ((("ids", 0), ("mask", 0)),)
        ids, mask = torch.zeros(1, 4, dtype=torch.int64), torch.ones(1, 5, dtype=torch.bool)
        with pytest.raises(ModelError, match="expected equal lengths, got"):
            model.run({"ids": ids, "mask": mask})

    def test_without_a_configuration_it_says_what_to_write(self, directory: Path) -> None:
        with pytest.raises(ConfigError, match="inputs 'ids', 'mask' and outputs 'sums', 'marks'"):
            load(directory)

    @pytest.mark.parametrize(
        ("written", "instead", "message"),
        [
            ("TYPE_INT64", "TYPE_INT32", "'ids' contradicts .* write data_type: TYPE_INT64"),
            ("TYPE_BOOL", "TYPE_UINT8", "'mask' contradicts .* write data_type: TYPE_BOOL"),
            ("TYPE_BOOL", "TYPE_STRING", "packages serve numbers only"),
            ("size: 16", "size: 33", "write max_batch_size: 32"),
            (
                '"mask"',
                '"masks"',
                "the AOTInductor package has 2; write 'ids', 'mask'",
            ),
            ("BOOL dims: [ -1 ]", "BOOL dims: [ -1, 3 ]", "does not say what it takes for 'mask'"),
            ("INT64 dims: [ -1 ]", "INT64 dims: [ 1, 1 ]", "does not say what it takes for 'ids'"),
            ("dims: [ 8 ]", "dims: [ 9 ]", "sums"),
            ("FP32 dims: [ 8 ]", "FP64 dims: [ 8 ]", "sums"),
        ],
    )
    def test_a_configuration_that_contradicts_it_is_refused(
        self, directory: Path, written: str, instead: str, message: str
    ) -> None:
        config = PACKAGE.replace(written, instead)
        assert config != PACKAGE
        with pytest.raises((ConfigError, ModelError), match=message):
            load(directory, config=config)

    def test_options_do_not_apply(self, directory: Path) -> None:
        with pytest.raises(ModelError, match="runs as it was compiled, without 'precision bf16'"):
            load(directory, "precision=bf16", config=PACKAGE)
