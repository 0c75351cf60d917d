"""Devices and threads for what is asked and what there is."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from headrace.protocol.model_config_pb2 import ModelConfig, ModelInstanceGroup
from headrace_server.workers.executor import ModelLoadError
from headrace_server.workers.placement import (
    CAN_PIN,
    MAX_AUTOMATIC_CPU_WORKERS,
    InstanceGroup,
    available_cores,
    cores_to_pin,
    dealt_out,
    instance_groups,
    place,
)


def devices(groups: Sequence[InstanceGroup], *, cuda_devices: int = 0, cores: int = 4) -> list[str]:
    return [p.device for p in place(groups, cuda_devices=cuda_devices, cores=cores)]


class TestAutomatic:
    def test_there_is_one_worker_per_gpu(self) -> None:
        assert devices((), cuda_devices=3) == ["cuda:0", "cuda:1", "cuda:2"]

    @pytest.mark.parametrize(
        ("cores", "workers", "threads"),
        [(1, 1, 1), (2, 1, 2), (4, 1, 4), (7, 1, 7), (8, 2, 4), (16, 4, 4), (64, 4, 16)],
    )
    def test_cpu_workers_share_the_cores(self, cores: int, workers: int, threads: int) -> None:
        placements = place((), cuda_devices=0, cores=cores)
        assert [p.device for p in placements] == ["cpu"] * workers
        assert {p.threads for p in placements} == {threads}
        assert workers * threads <= cores
        assert workers <= MAX_AUTOMATIC_CPU_WORKERS


class TestGroups:
    def test_a_count_of_cpu_workers_is_honoured(self) -> None:
        placements = place([InstanceGroup("cpu", 3)], cuda_devices=2, cores=4)
        assert [(p.device, p.threads) for p in placements] == [("cpu", 1)] * 3

    def test_more_workers_than_cores_get_one_thread_each(self) -> None:
        placements = place([InstanceGroup("cpu", 8)], cuda_devices=0, cores=2)
        assert len(placements) == 8
        assert {p.threads for p in placements} == {1}

    def test_a_count_is_per_gpu(self) -> None:
        groups = [InstanceGroup("gpu", 2)]
        assert devices(groups, cuda_devices=2) == ["cuda:0", "cuda:0", "cuda:1", "cuda:1"]

    def test_gpus_may_be_named(self) -> None:
        assert devices([InstanceGroup("gpu", 0, [2, 0])], cuda_devices=3) == ["cuda:2", "cuda:0"]

    def test_several_workers_share_each_gpu_that_is_named(self) -> None:
        groups = [InstanceGroup("gpu", 2, [1]), InstanceGroup("gpu", 1, [0, 1])]
        expected = ["cuda:1", "cuda:1", "cuda:0", "cuda:1"]
        assert devices(groups, cuda_devices=2) == expected
        assert {p.threads for p in place(groups, cuda_devices=2, cores=16)} == {1}

    def test_auto_means_gpus_where_there_are_any(self) -> None:
        assert devices([InstanceGroup("auto", 2)], cuda_devices=1) == ["cuda:0", "cuda:0"]
        assert devices([InstanceGroup("auto", 2)], cuda_devices=0) == ["cpu", "cpu"]

    def test_groups_add_up_and_cpu_workers_share_what_is_theirs(self) -> None:
        groups = [InstanceGroup("cpu", 2), InstanceGroup("gpu", 1), InstanceGroup("cpu", 2)]
        placements = place(groups, cuda_devices=1, cores=8)
        assert [p.device for p in placements] == ["cpu", "cpu", "cuda:0", "cpu", "cpu"]
        assert [p.threads for p in placements] == [2, 2, 1, 2, 2]

    def test_a_gpu_where_there_is_none_is_refused(self) -> None:
        with pytest.raises(ModelLoadError, match="torch sees no CUDA device"):
            place([InstanceGroup("gpu", 1)], cuda_devices=0, cores=4)

    def test_a_gpu_that_is_not_there_is_refused_by_name(self) -> None:
        with pytest.raises(ModelLoadError, match=r"names GPU 5, but torch sees 2 here \(0 to 1\)"):
            place([InstanceGroup("gpu", 1, [0, 5])], cuda_devices=2, cores=4)


class TestConfiguration:
    def test_no_configuration_means_automatic(self) -> None:
        assert instance_groups(None) == ()
        assert instance_groups(ModelConfig()) == ()

    def test_kinds_counts_and_gpus_are_read(self) -> None:
        config = ModelConfig(
            instance_group=[
                ModelInstanceGroup(kind=ModelInstanceGroup.KIND_GPU, count=2, gpus=[0, 1]),
                ModelInstanceGroup(kind=ModelInstanceGroup.KIND_CPU, count=1),
                ModelInstanceGroup(kind=ModelInstanceGroup.KIND_AUTO),
            ]
        )
        assert instance_groups(config) == (
            InstanceGroup("gpu", 2, (0, 1)),
            InstanceGroup("cpu", 1),
            InstanceGroup("auto", 0),
        )


def test_this_process_may_use_at_least_one_core() -> None:
    assert available_cores() >= 1


class TestPinning:
    def test_each_cpu_worker_gets_cores_of_its_own(self) -> None:
        placements = place([InstanceGroup("cpu", 2)], cuda_devices=0, cores=4, pins=[2, 3, 6, 7])
        assert [p.pinned_to for p in placements] == [(2, 3), (6, 7)]

    def test_workers_beyond_the_cores_share_them_in_turn(self) -> None:
        placements = place([InstanceGroup("cpu", 3)], cuda_devices=0, cores=2, pins=[4, 5])
        assert [p.pinned_to for p in placements] == [(4,), (5,), (4,)]

    def test_gpu_workers_are_not_pinned_and_take_no_cores(self) -> None:
        groups = [InstanceGroup("gpu", 1), InstanceGroup("cpu", 1)]
        placements = place(groups, cuda_devices=1, cores=2, pins=[0, 1])
        assert [p.pinned_to for p in placements] == [(), (0, 1)]

    def test_nobody_is_pinned_unasked(self) -> None:
        assert place((), cuda_devices=0, cores=2)[0].pinned_to == ()

    def test_models_get_their_shares_one_after_the_other(self) -> None:
        assert dealt_out([1, 2, 3], 1, 2) == [(1,), (2,)]
        assert dealt_out([1, 2, 3], 2, 2) == [(1, 2), (1, 3)]

    def test_nobody_gets_a_core_twice(self) -> None:
        assert dealt_out([1, 2], 5, 2) == [(1, 2), (1, 2)]

    @pytest.mark.skipif(not CAN_PIN, reason="only Linux pins")
    def test_the_front_keeps_the_first_core_where_it_can(self) -> None:
        own = sorted(os.sched_getaffinity(0))
        assert cores_to_pin(len(own)) == tuple(own)
        assert cores_to_pin(1) == (own[-1],)
