"""One contract for every loader: the spec is complete, the answer is the network's own."""

from __future__ import annotations

import inspect
import os
import py_compile
import re
import sys
import textwrap
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from google.protobuf import text_format

from headrace.protocol.model_config_pb2 import ModelConfig
from headrace_server import TensorSpec
from headrace_server.models.datatypes import config_type_name
from headrace_server.models.errors import ConfigError, ModelError
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.repository import ModelKind, ModelSource, read_model
from headrace_server.models.torch_types import TORCH_DTYPES
from headrace_server.models.warmup import warm_up

MAX_BATCH_SIZE = 8


class Network(torch.nn.Module):
    """x [rows, 4], shift [rows, 3] -> scores [rows, 3], doubled [rows, 4]."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(7)
        self.linear = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor, shift: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"scores": torch.softmax(self.linear(x) + shift, dim=-1), "doubled": x * 2}


class Echo(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clone()


INPUTS = (TensorSpec("x", "FP32", [4]), TensorSpec("shift", "FP32", [3]))
OUTPUTS = (TensorSpec("scores", "FP32", [3]), TensorSpec("doubled", "FP32", [4]))
CONFIG = f"""
max_batch_size: {MAX_BATCH_SIZE}
input [ {{ name: "x" data_type: TYPE_FP32 dims: [ 4 ] }},
        {{ name: "shift" data_type: TYPE_FP32 dims: [ 3 ] }} ]
output [ {{ name: "scores" data_type: TYPE_FP32 dims: [ 3 ] }},
         {{ name: "doubled" data_type: TYPE_FP32 dims: [ 4 ] }} ]
"""


def batch_dimension(*names: str, max: int = MAX_BATCH_SIZE) -> dict[str, dict[int, Any]]:
    dimension = torch.export.Dim("batch", min=1, max=max)
    return {name: {0: dimension} for name in names}


def save_exported(
    module: torch.nn.Module,
    file: Path,
    *inputs: torch.Tensor,
    dynamic: dict[str, Any] | None = None,
    **keywords: torch.Tensor,
) -> None:
    program = torch.export.export(
        module.eval(), inputs, keywords or None, dynamic_shapes=dynamic, strict=False
    )
    torch.export.save(program, file)


def save_script(module: torch.nn.Module, file: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        torch.jit.save(torch.jit.script(module.eval()), str(file))


def save_python(source: str, file: Path) -> None:
    header = """
    import numpy as np
    import torch
    from headrace_server import Model, TensorSpec
    """
    file.write_text(textwrap.dedent(header) + textwrap.dedent(source))


def save_network(kind: ModelKind, file: Path) -> str:
    """Write `Network` as ``kind``; returns the configuration that it needs."""
    if kind is ModelKind.EXPORTED:
        example = (torch.zeros(2, 4), torch.zeros(2, 3))
        save_exported(Network(), file, *example, dynamic=batch_dimension("x", "shift"))
        return ""
    if kind is ModelKind.TORCHSCRIPT:
        save_script(Network(), file)
        return CONFIG
    torch.save(Network().state_dict(), file.with_name("weights.bin"))
    file.with_name("network.py").write_text(
        "import torch\n\n" + inspect.getsource(Network), encoding="utf-8"
    )
    save_python(
        f"""
        from network import Network

        class Served(Model):
            inputs = {[*INPUTS]!r}
            outputs = {[*OUTPUTS]!r}
            max_batch_size = {MAX_BATCH_SIZE}

            def load(self, context):
                weights = torch.load(context.directory / "weights.bin", weights_only=True)
                self.network = Network().to(context.device).eval()
                self.network.load_state_dict(weights)

            def forward(self, x, shift):
                return self.network(x, shift)
        """,
        file,
    )
    return ""


def save_echo(kind: ModelKind, datatype: str, file: Path) -> str:
    """Write a model x [rows, 3] -> y, its copy."""
    config = "\n".join(
        f'{side} {{ name: "{name}" data_type: {config_type_name(datatype)} dims: [ 3 ] }}'
        for side, name in (("input", "x"), ("output", "y"))
    )
    if kind is ModelKind.EXPORTED:
        example = torch.zeros(2, 3, dtype=TORCH_DTYPES[datatype])
        save_exported(Echo(), file, example, dynamic=batch_dimension("x"))
    elif kind is ModelKind.TORCHSCRIPT:
        save_script(Echo(), file)
    else:
        save_python(
            f"""
            class Echo(Model):
                inputs = [TensorSpec("x", "{datatype}", [3])]
                outputs = [TensorSpec("y", "{datatype}", [3])]

                def forward(self, x):
                    return x
            """,
            file,
        )
    return f"max_batch_size: {MAX_BATCH_SIZE}\n{config}"


@dataclass(slots=True)
class Repository:
    """Writes one model, loads it, and closes what it loaded."""

    root: Path
    loaded: list[LoadedModel]

    def file(self, kind: ModelKind) -> Path:
        path = self.root / "m" / "1" / kind.filename
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def load(self, config: str = "", device: str = "cpu") -> LoadedModel:
        written = self.root / "m" / "config.pbtxt"
        if config:
            written.write_text(config)
        entry = read_model(self.root / "m")
        assert entry.error is None, entry.error
        model = load_model(entry.versions[0], entry.config, device)
        self.loaded.append(model)
        return model

    def source(self, kind: ModelKind) -> ModelSource:
        return ModelSource("m", 1, self.file(kind), kind)


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    repository = Repository(tmp_path, [])
    yield repository
    for model in repository.loaded:
        model.close()


every_kind = pytest.mark.parametrize("kind", list(ModelKind), ids=lambda kind: kind.name.lower())


def answer(model: LoadedModel, **inputs: Any) -> dict[str, Any]:
    return model.run(inputs)


@every_kind
def test_spec_is_complete(repository: Repository, kind: ModelKind) -> None:
    spec = repository.load(save_network(kind, repository.file(kind))).spec
    assert (spec.name, spec.version, spec.max_batch_size) == ("m", 1, MAX_BATCH_SIZE)
    assert spec.inputs == INPUTS
    assert spec.outputs == OUTPUTS


@every_kind
def test_answer_is_exactly_the_networks_own(repository: Repository, kind: ModelKind) -> None:
    model = repository.load(save_network(kind, repository.file(kind)))
    network = Network().eval()
    for rows in (1, 2, 5, MAX_BATCH_SIZE):
        x, shift = torch.randn(rows, 4), torch.randn(rows, 3)
        outputs = answer(model, x=x, shift=shift)
        with torch.inference_mode():
            expected = network(x, shift)
        assert list(outputs) == ["scores", "doubled"]
        for name, value in expected.items():
            assert torch.equal(outputs[name], value)


@every_kind
@pytest.mark.parametrize("datatype", TORCH_DTYPES)
def test_every_datatype_comes_back_as_it_went(
    repository: Repository, kind: ModelKind, datatype: str
) -> None:
    model = repository.load(save_echo(kind, datatype, repository.file(kind)))
    assert model.spec.inputs == (TensorSpec("x", datatype, [3]),)
    assert model.spec.outputs == (TensorSpec("y", datatype, [3]),)
    sent = torch.tensor([[0, 1, 1], [1, 0, 1]], dtype=TORCH_DTYPES[datatype])
    received = answer(model, x=sent)["y"]
    assert received.dtype == sent.dtype
    assert torch.equal(received, sent)


def test_bytes_come_back_as_they_went(repository: Repository) -> None:
    model = repository.load(save_echo(ModelKind.PYTHON, "BYTES", repository.file(ModelKind.PYTHON)))
    sent = np.array([[b"a", b"", b"\xff\x00"], [b"d", b"e", "\u00e9".encode()]], dtype=object)
    received = answer(model, x=sent)["y"]
    assert received.dtype == object
    assert received.tolist() == sent.tolist()


@every_kind
def test_missing_file_is_reported(repository: Repository, kind: ModelKind) -> None:
    with pytest.raises(ModelError, match=r"found nothing at .*model\.p"):
        load_model(repository.source(kind), None, "cpu")


@every_kind
@pytest.mark.parametrize("damage", ["empty", "junk", "truncated"])
def test_damaged_file_is_reported_by_name(
    repository: Repository, kind: ModelKind, damage: str
) -> None:
    file = repository.file(kind)
    config = save_network(kind, file)
    whole = file.read_bytes()
    junk = b"\0junk(" * 99
    file.write_bytes({"empty": b"", "junk": junk, "truncated": whole[: len(whole) // 2]}[damage])
    with pytest.raises(ModelError) as error:
        repository.load(config)
    assert str(error.value).startswith(str(file))
    assert re.search("expected|cannot be imported", str(error.value))


@every_kind
def test_configuration_that_contradicts_the_model_is_refused(
    repository: Repository, kind: ModelKind
) -> None:
    save_network(kind, repository.file(kind))
    third = 'input { name: "third" data_type: TYPE_FP32 dims: [ 1 ] }'
    with pytest.raises(ConfigError, match=r"config\.pbtxt.*input"):
        repository.load(CONFIG + third)


@every_kind
def test_configuration_may_lower_the_batch_size(repository: Repository, kind: ModelKind) -> None:
    save_network(kind, repository.file(kind))
    lowered = CONFIG.replace(f"max_batch_size: {MAX_BATCH_SIZE}", "max_batch_size: 2")
    assert repository.load(lowered).spec.max_batch_size == 2


@every_kind
def test_warm_up_of_a_good_model_succeeds(repository: Repository, kind: ModelKind) -> None:
    config = save_network(kind, repository.file(kind))
    model = repository.load(config)
    warm_up(model, None, repository.source(kind))


class TestExported:
    kind = ModelKind.EXPORTED

    def load(
        self,
        repository: Repository,
        module: torch.nn.Module,
        *inputs: torch.Tensor,
        dynamic: Any = None,
        config: str = "",
        **keywords: torch.Tensor,
    ) -> LoadedModel:
        save_exported(module, repository.file(self.kind), *inputs, dynamic=dynamic, **keywords)
        return repository.load(config)

    @pytest.mark.parametrize("hint", [torch.export.Dim.DYNAMIC, torch.export.Dim.AUTO])
    def test_unbounded_batch_dimension_gets_the_default(
        self, repository: Repository, hint: Any
    ) -> None:
        # torch records such a dimension as having two rows or more.
        model = self.load(repository, Echo(), torch.zeros(2, 3), dynamic={"x": {0: hint}})
        assert model.spec.max_batch_size == 64
        assert model.spec.outputs == (TensorSpec("OUTPUT__0", "FP32", [3]),)
        assert torch.equal(answer(model, x=torch.ones(1, 3))["OUTPUT__0"], torch.ones(1, 3))

    def test_unbounded_batch_dimension_takes_the_configured_size(
        self, repository: Repository
    ) -> None:
        dynamic = {"x": {0: torch.export.Dim.DYNAMIC}}
        model = self.load(
            repository, Echo(), torch.zeros(2, 3), dynamic=dynamic, config="max_batch_size: 200"
        )
        assert model.spec.max_batch_size == 200

    def test_configured_size_stays_within_the_programs_range(self, repository: Repository) -> None:
        with pytest.raises(ConfigError, match="takes at most 8 rows; write max_batch_size: 8"):
            self.load(
                repository,
                Echo(),
                torch.zeros(2, 3),
                dynamic=batch_dimension("x"),
                config="max_batch_size: 9",
            )

    def test_fixed_batch_is_no_batch_dimension(self, repository: Repository) -> None:
        model = self.load(repository, Echo(), torch.zeros(2, 3))
        assert model.spec.max_batch_size == 0
        assert model.spec.inputs == (TensorSpec("x", "FP32", [2, 3]),)
        assert torch.equal(answer(model, x=torch.ones(2, 3))["OUTPUT__0"], torch.ones(2, 3))
        with pytest.raises(ConfigError, match="dimension 0 of input 'x' is fixed at 2"):
            repository.load("max_batch_size: 4")

    def test_program_that_refuses_single_rows_is_not_batched(self, repository: Repository) -> None:
        dimension = torch.export.Dim("batch", min=3, max=8)
        model = self.load(repository, Echo(), torch.zeros(4, 3), dynamic={"x": {0: dimension}})
        assert model.spec.max_batch_size == 0
        assert model.spec.inputs == (TensorSpec("x", "FP32", [-1, 3], bounds=[(3, 8), (0, -1)]),)
        with pytest.raises(ConfigError, match="the program refuses a single row"):
            repository.load("max_batch_size: 4")

    def test_dimension_whose_rows_influence_each_other_is_no_batch(
        self, repository: Repository
    ) -> None:
        class OverWords(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return torch.softmax(x, dim=0)

        model = self.load(repository, OverWords(), torch.zeros(2, 3), dynamic=batch_dimension("x"))
        assert model.spec.max_batch_size == 0
        assert repository.load("max_batch_size: 4").spec.max_batch_size == 4

    def test_dimension_that_another_depends_on_is_no_batch(self, repository: Repository) -> None:
        class Gram(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x @ x.T

        model = self.load(repository, Gram(), torch.zeros(2, 3), dynamic=batch_dimension("x"))
        assert model.spec.max_batch_size == 0
        assert model.spec.outputs == (TensorSpec("OUTPUT__0", "FP32", [-1, -1]),)

    def test_other_dynamic_dimensions_are_left_to_requests(self, repository: Repository) -> None:
        length = torch.export.Dim("length", min=2, max=10)
        dynamic = {"x": {0: torch.export.Dim("batch", max=8), 1: length}}
        model = self.load(repository, Echo(), torch.zeros(2, 5), dynamic=dynamic)
        assert model.spec.inputs[0].shape == (-1,)
        assert model.example_shapes == {"x": (10,)}
        warm_up(model, None, repository.source(self.kind))

    def test_lengths_stay_within_what_was_exported(self, repository: Repository) -> None:
        class Masked(torch.nn.Module):
            def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
                return x * mask

        length = torch.export.Dim("length", min=3, max=10)
        dimensions = {0: torch.export.Dim("batch", max=8), 1: length}
        model = self.load(
            repository,
            Masked(),
            *(torch.zeros(2, 5), torch.zeros(2, 5)),
            dynamic={"x": dimensions, "mask": dimensions},
        )
        assert model.spec.one_length == ((("x", 0), ("mask", 0)),)
        assert answer(model, x=torch.ones(1, 10), mask=torch.ones(1, 10))
        for wrong, message in (
            ((2, 2), "dimension 1 of 'x': expected 3 to 10, got 2"),
            ((11, 11), "dimension 1 of 'x': expected 3 to 10, got 11"),
            ((4, 5), "dimension 1 of 'mask': expected 4, as in another input, got 5"),
        ):
            with pytest.raises(ModelError, match=message):
                answer(model, x=torch.ones(1, wrong[0]), mask=torch.ones(1, wrong[1]))

    def test_nested_arguments_keywords_and_constants(self, repository: Repository) -> None:
        class Nested(torch.nn.Module):
            def forward(self, pair: Any, *, scale: torch.Tensor, times: int = 1) -> tuple[Any, ...]:
                return pair["b"] * scale * times, {"a": pair["a"]}

        dimension = torch.export.Dim("batch", max=8)
        program = torch.export.export(
            Nested(),
            ({"a": torch.zeros(2, 1), "b": torch.zeros(2, 3)},),
            {"scale": torch.zeros(2, 3), "times": 4},
            dynamic_shapes={
                "pair": {"a": {0: dimension}, "b": {0: dimension}},
                "scale": {0: dimension},
                "times": None,
            },
            strict=False,
        )
        torch.export.save(program, repository.file(self.kind))
        model = repository.load()
        assert [tensor.name for tensor in model.spec.inputs] == ["pair_a", "pair_b", "scale"]
        assert [tensor.name for tensor in model.spec.outputs] == ["OUTPUT__0", "OUTPUT__1"]
        a, b, scale = torch.randn(2, 1), torch.randn(2, 3), torch.randn(2, 3)
        outputs = answer(model, scale=scale, pair_b=b, pair_a=a)
        assert torch.equal(outputs["OUTPUT__0"], b * scale * 4)
        assert torch.equal(outputs["OUTPUT__1"], a)

    def test_configuration_names_what_the_program_does_not(self, repository: Repository) -> None:
        model = self.load(
            repository,
            Echo(),
            torch.zeros(2, 3),
            dynamic=batch_dimension("x"),
            config="""max_batch_size: 4
            input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3 ] }
            output { name: "copy" data_type: TYPE_FP32 dims: [ 3 ] }""",
        )
        outputs = answer(model, INPUT__0=torch.ones(1, 3))
        assert torch.equal(outputs["copy"], torch.ones(1, 3))

    def test_program_with_state_keeps_its_weights_apart(self, repository: Repository) -> None:
        class Normed(torch.nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.norm = torch.nn.BatchNorm1d(3)

            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return self.norm(x), x.argmax(dim=1, keepdim=True)

        model = self.load(repository, Normed(), torch.zeros(2, 3), dynamic=batch_dimension("x"))
        assert model.spec.max_batch_size == MAX_BATCH_SIZE
        assert [tensor.name for tensor in model.spec.inputs] == ["x"]
        assert model.spec.outputs[1] == TensorSpec("OUTPUT__1", "INT64", [1])

    def test_program_that_returns_no_tensor_is_refused(self, repository: Repository) -> None:
        class Counted(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, int]:
                return x * 2, x.shape[0]

        with pytest.raises(ModelError, match="output 'OUTPUT__1' is none"):
            self.load(repository, Counted(), torch.zeros(2, 3), dynamic=batch_dimension("x"))

    def test_datatype_beyond_the_protocol_is_refused(self, repository: Repository) -> None:
        with pytest.raises(ModelError, match=r"'x' is torch\.complex64, which no datatype carries"):
            self.load(repository, Echo(), torch.zeros(2, 3, dtype=torch.complex64))

    def test_files_mistaken_for_programs_are_recognised(self, repository: Repository) -> None:
        file = repository.file(self.kind)
        save_script(Network(), file)
        with pytest.raises(ModelError, match=r"found TorchScript; name it model\.pt"):
            repository.load()
        torch.save({"weight": torch.zeros(1)}, file)
        with pytest.raises(ModelError, match=r"found what torch\.save writes"):
            repository.load()


class TestTorchScript:
    kind = ModelKind.TORCHSCRIPT

    def test_missing_configuration_comes_with_one_to_paste(self, repository: Repository) -> None:
        save_script(Network(), repository.file(self.kind))
        with pytest.raises(ConfigError, match="TorchScript carries no types") as error:
            repository.load()
        skeleton = str(error.value).partition(":\n")[2]
        config = text_format.Parse(skeleton, ModelConfig())
        assert [tensor.name for tensor in config.input] == ["INPUT__0", "INPUT__1"]
        assert [tensor.name for tensor in config.output] == ["OUTPUT__0"]

    @pytest.mark.parametrize(
        "names",
        [("INPUT__0", "INPUT__1"), ("x", "shift"), ("first", "second")],
        ids=["numbered", "arguments", "in order"],
    )
    def test_inputs_are_tied_to_arguments(
        self, repository: Repository, names: tuple[str, str]
    ) -> None:
        save_script(Network(), repository.file(self.kind))
        config = CONFIG.replace('"x"', f'"{names[0]}"').replace('"shift"', f'"{names[1]}"')
        model = repository.load(config)
        x, shift = torch.randn(2, 4), torch.randn(2, 3)
        outputs = answer(model, **{names[1]: shift, names[0]: x})
        with torch.inference_mode():
            assert torch.equal(outputs["scores"], Network().eval()(x, shift)["scores"])

    def test_numbered_outputs_pick_results(self, repository: Repository) -> None:
        class Pair(torch.nn.Module):
            def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
                return x, x + 1

        save_script(Pair(), repository.file(self.kind))
        config = """max_batch_size: 4
        input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 3 ] }
        output { name: "OUTPUT__1" data_type: TYPE_FP32 dims: [ 3 ] }"""
        model = repository.load(config)
        assert answer(model, INPUT__0=torch.zeros(1, 3))["OUTPUT__1"].tolist() == [[1, 1, 1]]
        with pytest.raises(ConfigError, match=r"names 3 results .* but the script returns 2"):
            repository.load(config.replace("OUTPUT__1", "OUTPUT__2"))

    def test_script_saved_while_training_answers_as_in_evaluation(
        self, repository: Repository
    ) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            script = torch.jit.script(torch.nn.Dropout().train())
            torch.jit.save(script, str(repository.file(self.kind)))
        model = repository.load(
            """max_batch_size: 4
            input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 64 ] }
            output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 64 ] }"""
        )
        assert torch.equal(
            answer(model, INPUT__0=torch.ones(1, 64))["OUTPUT__0"], torch.ones(1, 64)
        )

    def test_a_checkpoint_is_told_from_a_script(self, repository: Repository) -> None:
        torch.save(torch.nn.Linear(2, 1).state_dict(), repository.file(self.kind))
        expected = r"expected TorchScript .*, got what torch\.save writes: export the model, or"
        with pytest.raises(ModelError, match=expected):
            repository.load(
                """input { name: "INPUT__0" data_type: TYPE_FP32 dims: [ 2 ] }
                output { name: "OUTPUT__0" data_type: TYPE_FP32 dims: [ 1 ] }"""
            )

    def test_text_is_refused(self, repository: Repository) -> None:
        config = save_echo(self.kind, "BYTES", repository.file(self.kind))
        with pytest.raises(ConfigError, match=r"line 2: input\[0\]\.data_type is TYPE_STRING"):
            repository.load(config)


class TestPython:
    kind = ModelKind.PYTHON

    def load(self, repository: Repository, body: str, config: str = "") -> LoadedModel:
        save_python(body, repository.file(self.kind))
        return repository.load(config)

    ECHO = """
    class Echo(Model):
        inputs = [TensorSpec("x", "FP32", [3])]
        outputs = [TensorSpec("y", "FP32", [3])]

        def forward(self, x):
            {forward}
    """

    def test_code_is_that_of_its_source_whatever_bytecode_says(
        self, repository: Repository, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Bytecode passes for that of a source of the same size and time of change."""
        monkeypatch.setattr(sys, "dont_write_bytecode", False)
        file = repository.file(self.kind)
        helper = file.with_name("code_of_the_test") / "helper.py"
        helper.parent.mkdir()

        def write(number: int) -> None:
            helper.write_text(f"HELPED = {number}")
            code = self.ECHO.format(forward=f"return x * 0 + {number} * 10 + HELPED")
            save_python(
                "from code_of_the_test.helper import HELPED\n" + textwrap.dedent(code), file
            )
            for path in (helper, file):
                os.utime(path, (1_700_000_000, 1_700_000_000))

        def bytecode() -> dict[Path, bytes]:
            return {path: path.read_bytes() for path in repository.root.rglob("*.pyc")}

        write(1)
        for path in (helper, file):
            py_compile.compile(str(path))
        kept = bytecode()
        write(2)
        assert answer(repository.load(), x=torch.zeros(1, 3))["y"][0, 0] == 22
        assert len(kept) == 2
        assert bytecode() == kept

    def test_context_says_what_the_model_needs(self, repository: Repository) -> None:
        model = self.load(
            repository,
            """
            class Told(Model):
                inputs = [TensorSpec("x", "FP32", [1])]
                outputs = [TensorSpec("told", "BYTES", [1])]
                max_batch_size = 1

                def load(self, context):
                    self.told = (f"{context.name} {context.version} {context.device} "
                                 f"{context.directory.name} {dict(context.parameters)}")

                def forward(self, x):
                    return [[self.told]]
            """,
            'parameters { key: "beam" value { string_value: "4" } }',
        )
        told = answer(model, x=torch.zeros(1, 1))["told"]
        assert told.tolist() == [[b"m 1 cpu 1 {'beam': '4'}"]]

    def test_custom_parameters_reach_a_forward_that_asks_for_them(
        self, repository: Repository
    ) -> None:
        model = self.load(
            repository,
            """
            class Scaled(Model):
                inputs = [TensorSpec("x", "FP32", [1])]
                outputs = [TensorSpec("y", "FP32", [1])]

                def forward(self, x, parameters):
                    scale = [row.get("scale", 1.0) for row in parameters]
                    return x * torch.tensor(scale)[:, None]
            """,
        )
        ones = torch.ones(2, 1)
        assert model.run({"x": ones}, [{"scale": 3.0}, {}])["y"].tolist() == [[3], [1]]
        assert model.run({"x": ones})["y"].tolist() == [[1], [1]]

    def test_optional_input_may_be_left_out(self, repository: Repository) -> None:
        model = self.load(
            repository,
            """
            class Shifted(Model):
                inputs = [TensorSpec("x", "FP32", [1]),
                          TensorSpec("shift", "FP32", [1], optional=True)]
                outputs = [TensorSpec("y", "FP32", [1])]

                def forward(self, x, shift=None):
                    return x if shift is None else x + shift
            """,
        )
        one = torch.ones(1, 1)
        assert answer(model, x=one)["y"].item() == 1
        assert answer(model, x=one, shift=one)["y"].item() == 2

    def test_unload_runs_once(self, repository: Repository) -> None:
        model = self.load(
            repository,
            """
            class Closing(Model):
                inputs = outputs = [TensorSpec("x", "FP32", [1])]

                def load(self, context):
                    self.file = context.directory / "unloaded"

                def forward(self, x):
                    return x

                def unload(self):
                    self.file.touch(exist_ok=False)
            """,
        )
        model.close()
        model.close()
        assert (repository.file(self.kind).parent / "unloaded").exists()

    @pytest.mark.parametrize(
        ("forward", "message"),
        [
            ("return x.double()", "output 'y': expected FP32, got FP64"),
            ("return x[:1]", r"output 'y': expected shape \[2, 3\], got \[1, 3\]"),
            ("return x[:, :2]", r"output 'y': expected shape \[2, 3\], got \[2, 2\]"),
            ("return {'z': x}", r"expected the outputs \['y'\], got \['z'\]"),
            ("return x, x", r"expected 1 outputs \['y'\], got 2"),
            ("return None", "output 'y': expected a tensor, got NoneType"),
            ("return np.array([['a'] * 3] * 2)", "output 'y': expected FP32, got numpy <U1"),
        ],
    )
    def test_wrong_answer_is_reported(
        self, repository: Repository, forward: str, message: str
    ) -> None:
        model = self.load(repository, self.ECHO.format(forward=forward))
        with pytest.raises(ModelError, match=message):
            answer(model, x=torch.zeros(2, 3))
        with pytest.raises(ModelError, match=r"automatic warm-up with 'x' \[1, 3\]|\[32, 3\]"):
            warm_up(model, None, repository.source(self.kind))

    @pytest.mark.parametrize(
        "forward",
        [
            "return {'y': x.numpy()}",
            "return (x.numpy()[:, ::-1][:, ::-1],)",
            "return [x]",
            "return x.numpy().astype('>f4')",
            "return np.broadcast_to(x.numpy()[:1], x.shape)",
        ],
    )
    def test_answer_may_come_in_many_forms(self, repository: Repository, forward: str) -> None:
        model = self.load(repository, self.ECHO.format(forward=forward))
        assert torch.equal(answer(model, x=torch.ones(2, 3))["y"], torch.ones(2, 3))

    @pytest.mark.parametrize(
        "forward",
        [
            "return [['a', 'b'], ['c', 'd']]",
            "return [[b'a', 'b'], [b'c', b'd']]",
            "return {'y': np.array([['a', 'b'], ['c', 'd']])}",
            "return (np.array([[b'a', b'b'], [b'c', b'd']]),)",
            "return [np.array([['a', 'b'], ['c', 'd']], dtype=object)]",
        ],
    )
    def test_text_may_come_in_many_forms(self, repository: Repository, forward: str) -> None:
        body = self.ECHO.replace('"y", "FP32", [3]', '"y", "BYTES", [2]')
        model = self.load(repository, body.format(forward=forward))
        assert answer(model, x=torch.ones(2, 3))["y"].tolist() == [[b"a", b"b"], [b"c", b"d"]]

    @pytest.mark.parametrize(
        ("body", "message"),
        [
            ("", "expected one subclass of headrace_server.Model, found none"),
            (
                "class A(Model): pass\nclass B(Model): pass",
                "expected one subclass of headrace_server.Model, found A, B",
            ),
            ("import no_such_module", "line 5: cannot be imported: ModuleNotFoundError"),
            ("class A(Model):\n  inputs = [1]", r"expected A.inputs to be a list of TensorSpec"),
            (
                "class A(Model):\n  inputs = outputs = [TensorSpec('x', 'FP32', [1])]",
                "A defines no forward",
            ),
            (
                "class A(Model):\n  inputs = outputs = [TensorSpec('x', 'FP32', [1])]\n"
                "  def forward(self, y): pass",
                r"forward\(self, y\) cannot take the inputs \['x'\]",
            ),
            (
                "class A(Model):\n  inputs = outputs = [TensorSpec('x', 'FP32', [1])] * 2\n"
                "  def forward(self, x): pass",
                "A.inputs name a tensor twice",
            ),
            (
                "class A(Model):\n  max_batch_size = -1",
                "expected max_batch_size to be 0 or more, got -1",
            ),
            (
                "class A(Model):\n  inputs = outputs = [TensorSpec('x', 'FP32', [1])]\n"
                "  def forward(self, x): pass\n"
                "  def load(self, context):\n    raise OSError('no weights')",
                "line 9: A cannot load: OSError: no weights",
            ),
        ],
    )
    def test_unusable_file_is_reported(
        self, repository: Repository, body: str, message: str
    ) -> None:
        with pytest.raises(ModelError, match=message):
            self.load(repository, body)

    def test_base_class_in_the_same_file_is_no_second_model(self, repository: Repository) -> None:
        body = self.ECHO.format(forward="return x") + "\n    class Final(Echo): pass\n"
        assert self.load(repository, body).spec.inputs[0].name == "x"

    def test_model_without_batch_dimension_takes_full_shapes(self, repository: Repository) -> None:
        body = self.ECHO.format(forward="return x").replace("inputs", "max_batch_size = 0; inputs")
        model = self.load(repository, body)
        assert model.spec.max_batch_size == 0
        assert answer(model, x=torch.ones(3))["y"].tolist() == [1, 1, 1]


@pytest.fixture
def answering_zero(repository: Repository) -> Callable[[], LoadedModel]:
    def load() -> LoadedModel:
        save_python(
            """
            class Picky(Model):
                inputs = [TensorSpec("x", "FP32", [1])]
                outputs = [TensorSpec("y", "FP32", [1])]

                def forward(self, x):
                    if not x.all():
                        raise ValueError("zero")
                    return 1 / x
            """,
            repository.file(ModelKind.PYTHON),
        )
        return repository.load()

    return load


def test_model_that_cannot_stand_zeros_is_served_all_the_same(
    repository: Repository,
    answering_zero: Callable[[], LoadedModel],
    caplog: pytest.LogCaptureFixture,
) -> None:
    warm_up(answering_zero(), None, repository.source(ModelKind.PYTHON))
    assert "ValueError: zero: not warmed up" in caplog.text


def test_warm_up_that_was_asked_for_has_to_succeed(
    repository: Repository, answering_zero: Callable[[], LoadedModel]
) -> None:
    config = text_format.Parse(
        """model_warmup { name: "none" inputs {
             key: "x" value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }""",
        ModelConfig(),
    )
    with pytest.raises(ModelError, match=r"none warm-up with 'x' \[1, 1\]: ValueError: zero"):
        warm_up(answering_zero(), config, repository.source(ModelKind.PYTHON))
