"""Weights that several workers share: one copy in memory, and nobody can change another one's."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.export import ExportedProgram

if sys.platform != "linux":
    pytest.skip("memory files with seals are Linux's", allow_module_level=True)

from headrace_server.models.shared_weights import LEAST_BYTES, share_weights

WIDTH = 600
NBYTES = 4 * WIDTH * WIDTH
assert NBYTES > LEAST_BYTES


class Tied(torch.nn.Module):
    """Two large layers, the second with the weights of the first turned over, and a small bias."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first = torch.nn.Linear(WIDTH, WIDTH)
        self.second = torch.nn.Linear(WIDTH, WIDTH, bias=False)
        self.second.weight = torch.nn.Parameter(self.first.weight.t())
        self.third = torch.nn.Linear(WIDTH, WIDTH, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.third(self.second(self.first(x)))


def program(seed: int = 0) -> ExportedProgram:
    return torch.export.export(Tied(seed).eval(), (torch.zeros(1, WIDTH),))


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("weights", os.MFD_ALLOW_SEALING)
    yield descriptor
    os.close(descriptor)


X = torch.rand(1, WIDTH, generator=torch.Generator().manual_seed(1))


def test_answers_stay_the_same_and_tied_weights_are_kept_once(file: int) -> None:
    one = program()
    expected = one.module()(X)
    assert share_weights(one, file) == 2 * NBYTES
    assert torch.equal(one.module()(X), expected)
    first, second = one.state_dict["first.weight"], one.state_dict["second.weight"]
    assert first.untyped_storage().data_ptr() == second.untyped_storage().data_ptr()


def test_a_worker_that_writes_to_its_weights_changes_only_its_own(file: int) -> None:
    one, other = program(), program()
    expected = one.module()(X)
    assert share_weights(one, file) == share_weights(other, file) == 2 * NBYTES
    with torch.no_grad():
        one.state_dict["third.weight"].zero_()
    assert not one.module()(X).any()
    assert torch.equal(other.module()(X), expected)
    third = program()
    assert share_weights(third, file) == 2 * NBYTES
    assert torch.equal(third.module()(X), expected)


def test_weights_that_are_others_than_the_shared_ones_stay_a_worker_s_own(file: int) -> None:
    share_weights(program(seed=0), file)
    changed = program(seed=1)
    expected = changed.module()(X)
    assert share_weights(changed, file) == 0
    assert torch.equal(changed.module()(X), expected)


def test_what_a_worker_left_unfinished_is_written_again(file: int) -> None:
    os.ftruncate(file, 10)
    one = program()
    expected = one.module()(X)
    assert share_weights(one, file) == 2 * NBYTES
    assert torch.equal(one.module()(X), expected)


def test_the_file_can_be_changed_by_nobody_once_it_is_full(file: int) -> None:
    share_weights(program(), file)
    with pytest.raises(PermissionError):
        os.pwrite(file, b"x", 0)
    with pytest.raises(PermissionError):
        os.ftruncate(file, 0)


def test_workers_that_begin_together_fill_the_file_one_after_the_other(file: int) -> None:
    programs = [program() for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        shared = list(threads.map(lambda one: share_weights(one, file), programs))
    assert shared == [2 * NBYTES] * 4
