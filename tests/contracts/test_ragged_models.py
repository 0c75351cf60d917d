"""One contract for every loader: requests of different lengths ride together, answers unharmed."""

from __future__ import annotations

import inspect
import logging
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch

import ragged_networks
from headrace_server.core.errors import ServingError
from headrace_server.models.completion import complete_config
from headrace_server.models.errors import ConfigError, ModelError
from headrace_server.models.following import with_following
from headrace_server.models.loading import LoadedModel, load_model
from headrace_server.models.repository import ModelKind, read_model
from headrace_server.models.spec import MadeInput, Making, Role, TensorSpec
from headrace_server.models.warmup import warm_up
from headrace_server.workers.sweep import sweep
from ragged_networks import (
    Attention,
    Inverted,
    Leaking,
    Repeated,
    Segments,
    export_attention,
    export_segments,
    load,
    write_exported,
    write_script,
)
from riding_together import ride_together
from written_models import write_model

every_kind = pytest.mark.parametrize("kind", list(ModelKind), ids=lambda kind: kind.name.lower())

OUTPUTS = """
output { name: "tokens" data_type: TYPE_FP32 dims: [ -1, 8 ] }
output { name: "pooled" data_type: TYPE_FP32 dims: [ 8 ] }
"""
IDS = 'input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }\n'
MASK = 'input { name: "attention_mask" data_type: TYPE_INT64 dims: [ -1 ] }\n'


def parameter(key: str, value: str) -> str:
    return f'parameters {{ key: "{key}" value {{ string_value: "{value}" }} }}\n'


MADE_MASK = parameter("mask:attention_mask", "ids")
SENT_MASK = parameter("pad:ids", "0") + parameter("pad:attention_mask", "0")


def write_python(directory: Path, source: str, config: str = "") -> None:
    header = "import torch\nimport networks\nfrom headrace_server import Model, TensorSpec\n"
    write_model(directory.parent, directory.name, header + textwrap.dedent(source), config)
    # The networks go along: the worker's import path is not that of the tests.
    networks = inspect.getsource(ragged_networks).partition("def write_script")[0]
    (directory / "1" / "networks.py").write_text(networks)


def attention_model(directory: Path, kind: ModelKind, parameters: str) -> LoadedModel:
    if kind is ModelKind.EXPORTED:
        export_attention(directory, config=parameters)
    elif kind is ModelKind.TORCHSCRIPT:
        write_script(
            directory, Attention(), "max_batch_size: 16\n" + IDS + MASK + OUTPUTS + parameters
        )
    else:
        write_python(
            directory,
            """
            class Served(Model):
                inputs = [TensorSpec("ids", "INT64", [-1]),
                          TensorSpec("attention_mask", "INT64", [-1])]
                outputs = [TensorSpec("tokens", "FP32", [-1, 8]), TensorSpec("pooled", "FP32", [8])]
                max_batch_size = 16

                def load(self, context):
                    self.network = networks.Attention().eval()

                def forward(self, ids, attention_mask):
                    return self.network(ids, attention_mask)
            """,
            parameters,
        )
    return load(directory)


def ids_of(*lengths: int, rows: int = 1) -> list[np.ndarray]:
    return [np.random.default_rng(n).integers(0, 50, (rows, n)) for n in lengths]


async def answers_are_those_of_each_alone(model: LoadedModel, *, mask: bool) -> None:
    network = Attention().eval()
    requests = [*ids_of(3, 64, 1), *ids_of(7, rows=4)]
    sent = [
        {"ids": ids, **({"attention_mask": np.ones_like(ids)} if mask else {})} for ids in requests
    ]
    for ids, got in zip(requests, await ride_together(model, sent), strict=True):
        with torch.inference_mode():
            own = network(torch.from_numpy(ids), torch.ones(ids.shape, dtype=torch.int64))
        for name, value in own.items():
            assert got[name].shape == value.shape
            np.testing.assert_allclose(got[name], value, rtol=1e-5, atol=1e-5)


# -- padding -------------------------------------------------------------------------------


@every_kind
async def test_declared_pads_let_lengths_ride_together(tmp_path: Path, kind: ModelKind) -> None:
    model = attention_model(tmp_path / "m", kind, SENT_MASK)
    assert [tensor.pad for tensor in model.spec.inputs] == [0, 0]
    await answers_are_those_of_each_alone(model, mask=True)


@every_kind
async def test_a_mask_that_the_server_makes_is_no_clients_business(
    tmp_path: Path, kind: ModelKind
) -> None:
    model = attention_model(tmp_path / "m", kind, MADE_MASK)
    assert [(tensor.name, tensor.pad) for tensor in model.spec.inputs] == [("ids", 0)]
    mask = TensorSpec("attention_mask", "INT64", [-1], bounds=model.spec.inputs[0].bounds)
    assert model.spec.made == (MadeInput(mask, Making.MASK, "ids"),)
    assert model.spec.one_length == ()  # of what clients send
    assert [entry.name for entry in complete_config(model.spec).input] == ["ids"]
    await answers_are_those_of_each_alone(model, mask=False)


@every_kind
async def test_a_request_alone_gets_its_mask_too(tmp_path: Path, kind: ModelKind) -> None:
    model = attention_model(tmp_path / "m", kind, MADE_MASK)
    (ids,) = ids_of(5, rows=2)
    (got,) = await ride_together(model, [{"ids": ids}])
    with torch.inference_mode():
        own = Attention().eval()(torch.from_numpy(ids), torch.ones(2, 5))
    np.testing.assert_array_equal(got["tokens"], own["tokens"])


@every_kind
def test_models_with_made_inputs_are_warmed_up_and_timed(tmp_path: Path, kind: ModelKind) -> None:
    model = attention_model(tmp_path / "m", kind, MADE_MASK)
    entry = read_model(tmp_path / "m")
    warm_up(model, entry.config, entry.versions[0])
    longest = {length for _, length, _ in sweep(model)}
    # The script and the class do not say that there are but 64 positions.
    assert longest >= ({8, 32, 64} if kind is ModelKind.EXPORTED else {8, 32})


async def test_a_class_declares_its_mask_itself(tmp_path: Path) -> None:
    write_python(
        tmp_path / "m",
        """
        class Served(Model):
            inputs = [TensorSpec("ids", "INT64", [-1]),
                      TensorSpec("attention_mask", "BOOL", [-1], mask_of="ids")]
            outputs = [TensorSpec("tokens", "FP32", [-1, 8]), TensorSpec("pooled", "FP32", [8])]

            def load(self, context):
                self.network = networks.Attention().eval()

            def forward(self, ids, attention_mask):
                assert attention_mask.dtype == torch.bool
                return self.network(ids, attention_mask)
        """,
    )
    await answers_are_those_of_each_alone(load(tmp_path / "m"), mask=False)


PREPARED = """
class Served(Model):
    inputs = [TensorSpec("text", "BYTES", [1])]
    prepared = [TensorSpec("ids", "INT64", [-1]),
                TensorSpec("attention_mask", "BOOL", [-1], mask_of="ids")]
    outputs = [TensorSpec("tokens", "FP32", [-1, 8]), TensorSpec("pooled", "FP32", [8])]

    def load(self, context):
        self.network = networks.Attention().eval()

    def prepare(self, text):
        return torch.tensor([[*text[0, 0]]])

    def forward(self, ids, attention_mask):
        return self.network(ids, attention_mask)
"""


async def test_what_is_prepared_gets_its_mask_from_the_server(tmp_path: Path) -> None:
    write_python(tmp_path / "m", PREPARED)
    model = load(tmp_path / "m")
    assert [tensor.name for tensor in model.spec.batched_inputs] == ["ids"]
    await answers_are_those_of_each_alone(model, mask=False)
    source = read_model(tmp_path / "m").versions[0]
    preparation = load_model(source, None, "cpu", Role.PREPARE)
    assert [tensor.name for tensor in preparation.spec.outputs] == ["ids"]
    prepared = preparation.run({"text": np.array([[b"\x01\x02"]], dtype=object)})
    assert prepared["ids"].tolist() == [[1, 2]]


def test_what_goes_to_prepare_is_not_filled(tmp_path: Path) -> None:
    write_python(tmp_path / "m", PREPARED.replace('"BYTES", [1]', '"INT64", [-1], pad=0'))
    with pytest.raises(ModelError, match="the input 'text' of Served goes to prepare as it comes"):
        load(tmp_path / "m")


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ('TensorSpec("m", "BOOL", [-1], mask_of="x")', "to be the mask of 'x', which is not among"),
        (
            'TensorSpec("ids", "INT64", [4]), TensorSpec("m", "BOOL", [-1], mask_of="ids")',
            "'ids': pad needs exactly one dynamic dimension",
        ),
        (
            'TensorSpec("ids", "INT64", [-1], optional=True), '
            'TensorSpec("m", "BOOL", [-1], mask_of="ids")',
            "'m': its source 'ids' may be left out",
        ),
    ],
)
def test_a_class_whose_mask_makes_no_sense_is_refused(
    tmp_path: Path, inputs: str, message: str
) -> None:
    write_python(
        tmp_path / "m",
        f"""
        class Served(Model):
            inputs = [{inputs}]
            outputs = [TensorSpec("y", "FP32", [1])]

            def forward(self, m, ids=None):
                return m
        """,
    )
    with pytest.raises(ModelError, match=message):
        load(tmp_path / "m")


FAULTS = [
    (parameter("pad:ids", "zero"), "must have a number, or none as its string_value, got 'zero'"),
    (parameter("default:ids", ""), "must have a number as its string_value, got ''"),
    (parameter("pad:ids", "0.5"), "expected a pad that INT64 holds, got 0.5"),
    (parameter("mask:attention_mask", "words"), "to be the mask of 'words', which is not among"),
    (parameter("default:ids", "0"), "default needs fixed dimensions, or a pad"),
]


@every_kind
def test_a_parameter_that_names_no_input_is_refused(tmp_path: Path, kind: ModelKind) -> None:
    message = "names no input of the model; it has 'ids', 'attention_mask'"
    with pytest.raises(ConfigError, match=message):
        attention_model(tmp_path / "m", kind, parameter("pad:word_ids", "0"))


@pytest.mark.parametrize(("parameters", "message"), FAULTS)
def test_a_fault_is_named_with_its_line(tmp_path: Path, parameters: str, message: str) -> None:
    with pytest.raises(ConfigError) as error:
        attention_model(tmp_path / "m", ModelKind.TORCHSCRIPT, "\n" + parameters)
    key = parameters.split('"')[1]
    line = 1 + (tmp_path / "m" / "config.pbtxt").read_text().splitlines().index(parameters.strip())
    assert f'config.pbtxt, line {line}: parameters["{key}"]' in str(error.value)
    assert message in str(error.value)


# -- exported programs: what is derived -----------------------------------------------------


@pytest.mark.parametrize("mask_type", [torch.int64, torch.bool, torch.float32])
async def test_padding_is_derived_from_a_shared_length_and_a_mask(
    tmp_path: Path, mask_type: torch.dtype
) -> None:
    export_attention(tmp_path / "m", mask_type=mask_type)
    model = load(tmp_path / "m")
    assert [tensor.pad for tensor in model.spec.inputs] == [0, 0]
    assert [tensor.bounds for tensor in model.spec.inputs] == [((0, 64),), ((0, 64),)]
    if mask_type is torch.int64:
        await answers_are_those_of_each_alone(model, mask=True)


class Answering(torch.nn.Module):
    """Answers with whole numbers, which stay the same while all that leads to them changes."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return (ids * attention_mask).sum(1, keepdim=True)


class Unmasked(torch.nn.Module):
    def forward(self, ids: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        return (ids * weights).sum(1, keepdim=True).float()


class Doubling(torch.nn.Module):
    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.cat([ids * attention_mask, ids], dim=1).float()


class Saturated(torch.nn.Module):
    """Forgets the mask, and says the same of everything."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(1000.0 + ids.sum(1, keepdim=True) + attention_mask[:, :1])


class Choosing(Attention):
    """Names the place of the largest score, which with `leaks` may be padding."""

    def __init__(self, sign: int, *, leaks: bool) -> None:
        super().__init__()
        self.sign, self.leaks = sign, leaks

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        answer = super().forward(ids, attention_mask)
        scores = self.sign * answer["tokens"][:, :, 0]
        if not self.leaks:
            scores = scores.masked_fill(attention_mask == 0, -torch.inf)
        return {**answer, "best": scores.argmax(1)}


class Judging(torch.nn.Module):
    """Its float says nothing of padding; its boolean does where the mask is forgotten."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> dict[str, torch.Tensor]:
        short = (ids + 2 * attention_mask).amin(1) > 1
        return {"first": ids[:, :1] * 0.5, "short": short}


@pytest.mark.parametrize(
    "module",
    [
        *(Inverted(), Leaking(), Answering(), Doubling(), Saturated(), Judging()),
        *(Choosing(1, leaks=True), Choosing(-1, leaks=True)),
    ],
)
def test_padding_that_would_show_is_not_derived(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, module: torch.nn.Module
) -> None:
    export_attention(tmp_path / "m", module)
    caplog.set_level("INFO", "headrace")
    assert [tensor.pad for tensor in load(tmp_path / "m").spec.inputs] == [None, None]
    # One of its outputs is twice as long, so that nothing was tried.
    tried = not isinstance(module, Doubling)
    assert ("requests of different lengths ride apart" in caplog.text) == tried


async def test_a_choice_that_heeds_the_mask_is_padded_for(tmp_path: Path) -> None:
    export_attention(tmp_path / "m", Choosing(1, leaks=False))
    model = load(tmp_path / "m")
    assert [tensor.pad for tensor in model.spec.inputs] == [0, 0]
    await answers_are_those_of_each_alone(model, mask=True)


def test_nothing_is_derived_without_a_mask(tmp_path: Path) -> None:
    batch, length = torch.export.Dim("batch", max=8), torch.export.Dim("length", max=64)
    inputs = {"ids": torch.zeros(2, 5), "weights": torch.zeros(2, 5)}
    dynamic = {name: {0: batch, 1: length} for name in inputs}
    write_exported(tmp_path / "m", Unmasked(), inputs, dynamic)
    assert [tensor.pad for tensor in load(tmp_path / "m").spec.inputs] == [None, None]


@pytest.mark.parametrize(
    "config", ["dynamic_batching { }", parameter("pad:ids", "none"), 'input [ { name: "ids"']
)
def test_nothing_is_derived_against_the_configuration(tmp_path: Path, config: str) -> None:
    """Triton's policy never pads, `none` says so, and a fixed length leaves nothing to pad."""
    if config.startswith("input"):
        fixed = (IDS + MASK).replace("-1", "9")
        config = "max_batch_size: 8\n" + fixed + OUTPUTS
    export_attention(tmp_path / "m", config=config)
    assert [tensor.pad for tensor in load(tmp_path / "m").spec.inputs] == [None, None]


def test_pads_of_an_exported_program_have_to_share_one_length(tmp_path: Path) -> None:
    export_attention(tmp_path / "m", config=parameter("pad:ids", "1"))
    with pytest.raises(ConfigError, match=r"'attention_mask' has the length of 'ids'.*pad it too"):
        load(tmp_path / "m")


def test_an_answer_that_cannot_be_cut_back_is_no_answer(tmp_path: Path) -> None:
    export_attention(tmp_path / "m", Doubling(), SENT_MASK)
    with pytest.raises(ConfigError, match=r"line 1: .*output 'OUTPUT__0' .* has a length other"):
        load(tmp_path / "m")


class Counting(torch.nn.Module):
    """Says how long its rows are, padding included."""

    def forward(self, ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return torch.ones_like(ids * attention_mask).sum(1, keepdim=True)


@pytest.mark.parametrize("module", [Leaking(), Counting()])
def test_declared_padding_that_shows_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, module: torch.nn.Module
) -> None:
    export_attention(tmp_path / "m", module, SENT_MASK)
    with caplog.at_level(logging.WARNING, "headrace.models"):
        assert load(tmp_path / "m").spec.inputs[0].pad == 0
    assert "padding as declared changes the answers" in caplog.text


# -- what follows the length ------------------------------------------------------------------


class Ranking(torch.nn.Module):
    """ids [rows, length] -> a score for each, one for each pair, and 5 labels for each row."""

    def forward(self, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        scores = ids.float()
        best = torch.arange(5).expand(ids.size(0), 5)
        return {"scores": scores, "pairs": scores[:, :, None] * scores[:, None, :], "best": best}


RANKING_CLASS = """
    import torch
    from headrace_server import Model, TensorSpec

    class Ranking(Model):
        inputs = [TensorSpec("ids", "INT64", [-1], pad=0)]
        outputs = [TensorSpec("scores", "FP32", [-1]), TensorSpec("pairs", "FP32", [-1, -1]),
                   TensorSpec("best", "INT64", [-1])]
        max_batch_size = 8

        def forward(self, ids):
            scores = ids.float()
            best = torch.arange(5).expand(len(ids), 5)
            return scores, scores[:, :, None] * scores[:, None, :], best
"""
RANKING = """
max_batch_size: 8
input { name: "ids" data_type: TYPE_INT64 dims: [ -1 ] }
output { name: "scores" data_type: TYPE_FP32 dims: [ -1 ] }
output { name: "pairs" data_type: TYPE_FP32 dims: [ -1, -1 ] }
output { name: "best" data_type: TYPE_INT64 dims: [ -1 ] }
parameters { key: "pad:ids" value { string_value: "0" } }
"""


@pytest.mark.parametrize("kind", [ModelKind.TORCHSCRIPT, ModelKind.PYTHON])
def test_what_follows_the_length_is_found_out(
    tmp_path: Path, kind: ModelKind, caplog: pytest.LogCaptureFixture
) -> None:
    if kind is ModelKind.TORCHSCRIPT:
        write_script(tmp_path / "m", Ranking(), RANKING)
    else:
        write_model(tmp_path, "m", RANKING_CLASS)
    assert with_following(load(tmp_path / "m")).following == ((0,), (0, 1), ())
    write_model(tmp_path, "narrow", RANKING_CLASS.replace("pad=0", "pad=0, bounds=[(1, 6)]"))
    assert with_following(load(tmp_path / "narrow")).following == ((0,), (0, 1), ())
    assert not caplog.records
    write_model(tmp_path, "fails", RANKING_CLASS.replace("ids.float()", "ids @ ids"))
    assert with_following(load(tmp_path / "fails")).following is None
    assert "on ones of length 16 the model could not be tried" in caplog.text


# -- optional inputs ------------------------------------------------------------------------


@every_kind
async def test_who_leaves_out_an_input_with_a_default_rides_with_who_does_not(
    tmp_path: Path, kind: ModelKind
) -> None:
    parameters = parameter("default:attention_mask", "1") + SENT_MASK
    model = attention_model(tmp_path / "m", kind, parameters)
    assert [tensor.optional for tensor in model.spec.inputs] == [False, True]
    short, long = ids_of(3, 9)
    half = np.array([[1] * 4 + [0] * 5])
    without, with_mask = await ride_together(
        model, [{"ids": short}, {"ids": long, "attention_mask": half}]
    )
    network = Attention().eval()
    for ids, mask, got in ((short, np.ones_like(short), without), (long, half, with_mask)):
        with torch.inference_mode():
            own = network(torch.from_numpy(ids), torch.from_numpy(mask))
        np.testing.assert_allclose(got["pooled"], own["pooled"], rtol=1e-5, atol=1e-5)


# -- Triton's ragged batches ------------------------------------------------------------------

SEGMENTS = """
max_batch_size: 8
input { name: "values" data_type: TYPE_FP32 dims: [ -1 ] allow_ragged_batch: true }
batch_input { kind: BATCH_ACCUMULATED_ELEMENT_COUNT target_name: "ends" data_type: TYPE_INT32
              source_input: "values" }
output { name: "sums" data_type: TYPE_FP32 dims: [ 1 ] }
output { name: "doubled" data_type: TYPE_FP32 dims: [ -1 ] }
batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: "doubled" source_input: "values" }
"""


def segments_model(directory: Path, kind: ModelKind, config: str = SEGMENTS) -> LoadedModel:
    if kind is ModelKind.EXPORTED:
        export_segments(directory, config)
    elif kind is ModelKind.TORCHSCRIPT:
        write_script(directory, Segments(), config)
    else:
        write_python(
            directory,
            """
            class Served(Model):
                inputs = [TensorSpec("values", "FP32", [-1])]
                outputs = [TensorSpec("sums", "FP32", [1]), TensorSpec("doubled", "FP32", [-1])]

                def forward(self, values, ends):
                    return networks.Segments()(values, ends)
            """,
            config,
        )
    return load(directory)


@every_kind
async def test_ragged_inputs_are_concatenated_and_answers_dealt_out(
    tmp_path: Path, kind: ModelKind
) -> None:
    model = segments_model(tmp_path / "m", kind)
    assert [tensor.name for tensor in model.spec.inputs] == ["values"]
    for lengths in ((3, 4, 5), (1,), (2, 2)):
        requests = [np.arange(n, dtype=np.float32)[None] + n for n in lengths]
        answers = await ride_together(model, [{"values": values} for values in requests])
        for values, answer in zip(requests, answers, strict=True):
            np.testing.assert_array_equal(answer["sums"], [[values.sum()]])
            np.testing.assert_array_equal(answer["doubled"], 2 * values)


@every_kind
def test_ragged_models_are_warmed_up_and_timed(tmp_path: Path, kind: ModelKind) -> None:
    model = segments_model(tmp_path / "m", kind)
    entry = read_model(tmp_path / "m")
    warm_up(model, entry.config, entry.versions[0])
    assert [(rows, length) for rows, length, _ in sweep(model)] == [
        (rows, 0) for rows in (1, 2, 3, 4, 6, 8)
    ]


def repeated_model(directory: Path, kind: ModelKind, making: Making) -> LoadedModel:
    config = f"""
    max_batch_size: 8
    input {{ name: "values" data_type: TYPE_FP32 dims: [ -1, -1 ] allow_ragged_batch: true }}
    batch_input {{ kind: BATCH_ELEMENT_COUNT target_name: "counts" data_type: TYPE_FP32
                   source_input: "values" }}
    batch_input {{ kind: {making.value} target_name: "made" data_type: TYPE_FP32
                   source_input: "values" }}
    output {{ name: "seen" data_type: TYPE_FP32 dims: [ -1 ] }}
    output {{ name: "rank" data_type: TYPE_FP32 dims: [ 1 ] }}
    """
    shape = (3, 2) if making is Making.ITEM_SHAPE else (3,)
    if kind is ModelKind.EXPORTED:
        inputs = {"values": torch.zeros(6), "counts": torch.ones(2), "made": torch.ones(shape)}
        dynamic = {name: {0: torch.export.Dim.DYNAMIC} for name in inputs}
        write_exported(directory, Repeated(), inputs, dynamic, config)
    elif kind is ModelKind.TORCHSCRIPT:
        write_script(directory, Repeated(), config)
    else:
        write_python(
            directory,
            """
            class Served(Model):
                inputs = [TensorSpec("values", "FP32", [-1, -1])]
                outputs = [TensorSpec("seen", "FP32", [-1]), TensorSpec("rank", "FP32", [1])]

                def forward(self, values, counts, made):
                    return networks.Repeated()(values, counts, made)
            """,
            config,
        )
    return load(directory)


@every_kind
@pytest.mark.parametrize(
    ("making", "seen"),
    [
        (Making.ELEMENT_COUNT, [4, 2, 6]),
        (Making.ACCUMULATED_ELEMENT_COUNT, [4, 6, 12]),
        (Making.ACCUMULATED_ELEMENT_COUNT_WITH_ZERO, [0, 4, 6, 12]),
        (Making.MAX_ELEMENT_COUNT_AS_SHAPE, [0] * 6),
        (Making.ITEM_SHAPE, [4, 1, 1, 2, 2, 3]),
        (Making.ITEM_SHAPE_FLATTEN, [4, 1, 1, 2, 2, 3]),
    ],
)
async def test_batch_inputs_are_what_triton_makes(
    tmp_path: Path, kind: ModelKind, making: Making, seen: list[float]
) -> None:
    model = repeated_model(tmp_path / "m", kind, making)
    shapes = [(1, 4, 1), (1, 1, 2), (1, 2, 3)]
    answers = await ride_together(
        model, [{"values": np.ones(shape, np.float32)} for shape in shapes]
    )
    for answer in answers:
        np.testing.assert_array_equal(answer["seen"], [seen])
        assert answer["rank"] == (2 if making is Making.ITEM_SHAPE else 1)


@every_kind
async def test_counts_are_of_requests_not_of_rows(tmp_path: Path, kind: ModelKind) -> None:
    """As in Triton, a model that answers once for a count cannot answer two rows."""
    model = segments_model(tmp_path / "m", kind)
    with pytest.raises(ServingError):
        await ride_together(model, [{"values": np.ones((2, 3), np.float32)}])


RAGGED_FAULTS = [
    ("max_batch_size: 8", "", "input[0].allow_ragged_batch needs a max_batch_size above 0"),
    ('source_input: "values" }\noutput', "}\noutput", "batch_input[0] must have one source_input"),
    (
        'source_input: "values" }\noutput',
        'source_input: "x" }\noutput',
        "'x' is not among the inputs: 'values'",
    ),
    ('target_name: "ends"', "", "batch_input[0] has no target_name"),
    ('target_name: "ends"', 'target_name: "values"', "'values' appears twice"),
    ("TYPE_INT32", "TYPE_INT64", "batch_input[0].data_type must be TYPE_INT32 or TYPE_FP32"),
    ("dims: [ -1 ] allow", "dims: [ -1 ] optional: true allow", "'values' must not be optional"),
    (
        'target_name: "doubled"',
        'target_name: "x"',
        "'x' is not among the outputs: 'sums', 'doubled'",
    ),
    (
        '"doubled" data_type: TYPE_FP32 dims: [ -1 ]',
        '"doubled" data_type: TYPE_FP32 dims: [ 1, -1 ]',
        "has no counterpart",
    ),
    (
        '"doubled" data_type: TYPE_FP32',
        '"doubled" data_type: TYPE_STRING',
        "must not be TYPE_STRING",
    ),
]


@pytest.mark.parametrize(("old", "new", "message"), RAGGED_FAULTS)
def test_a_ragged_configuration_without_sense_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in SEGMENTS
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "config.pbtxt").write_text(SEGMENTS.replace(old, new))
    error = read_model(tmp_path / "m").error
    assert error is not None
    assert "config.pbtxt, line" in error
    assert message in error


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('target_name: "ends"', 'target_name: "end"', "'end' is unknown: the inputs of"),
        ("TYPE_INT32", "TYPE_FP32", "batch_input[0].data_type of 'ends' contradicts"),
        (
            "BATCH_ACCUMULATED_ELEMENT_COUNT",
            "BATCH_ITEM_SHAPE",
            "makes 'ends' with the shape [-1, 1]",
        ),
        ('name: "values"', 'name: "value"', "'value' is unknown"),
    ],
)
def test_a_ragged_configuration_that_contradicts_the_program_is_refused(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    config = SEGMENTS.replace(old, new)
    if "value" in new:
        config = config.replace('source_input: "values"', 'source_input: "value"')
    with pytest.raises(ConfigError) as error:
        segments_model(tmp_path / "m", ModelKind.EXPORTED, config)
    assert message in str(error.value)


async def test_an_answer_of_another_size_than_its_source_fails_the_batch(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_python(
        tmp_path / "m",
        """
        class Served(Model):
            inputs = [TensorSpec("values", "FP32", [-1])]
            outputs = [TensorSpec("sums", "FP32", [1]), TensorSpec("doubled", "FP32", [-1])]

            def forward(self, values, ends):
                return torch.zeros(len(ends), 1), values[1:]
        """,
        SEGMENTS,
    )
    with pytest.raises(ServingError):
        await ride_together(load(tmp_path / "m"), [{"values": np.ones((1, 3), np.float32)}])
    assert (
        "'doubled': expected 3 elements in all, as 'values' has it, got the shape [2]"
        in caplog.text
    )
