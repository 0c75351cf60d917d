"""A deployment on puppet workers: futures, owners, cancellation, loss, drain."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable
from dataclasses import replace
from typing import Literal

import pytest

from asking import infer, submit
from doubles import TIMING, PuppetExecutor
from engine_stage import call_of, serve, spec_of
from headrace_server.core.adaptive import AGEING_S
from headrace_server.core.errors import Reason, ServingError
from headrace_server.engine.calls import Answer
from headrace_server.engine.deployment import DeploymentState
from headrace_server.models.batching import QueuePolicy
from headrace_server.models.spec import TensorSpec
from headrace_server.workers.executor import BatchOutput, WorkerState


async def reason_of(answer: Awaitable[Answer]) -> Reason:
    with pytest.raises(ServingError) as caught:
        await answer
    return caught.value.reason


async def one_turn() -> None:
    """Let the tasks of this loop go on until they wait."""
    await asyncio.sleep(0)


class TestAnswers:
    async def test_a_lone_call_is_answered(self) -> None:
        stage = await serve()
        answer = stage.submit(b"ab")
        stage.clock.advance(0.5)
        stage.workers.complete(0)
        got = await answer
        assert [(part.shape, part.data) for part in got.outputs] == [((1, 2), b"ab")]
        assert got.batch_rows == 1
        assert got.queue_s == 0.0
        assert got.timing.compute_ns == 21_300

    async def test_rows_come_back_to_their_owner(self) -> None:
        stage = await serve()
        calls = [call_of(b"aa"), call_of(b"bb", b"cc", b"dd"), call_of(b"ee", b"ff")]
        futures = [submit(stage.deployment, call)[1] for call in calls]
        stage.clock.advance()
        stage.workers.complete(0)
        answers = [await future for future in futures]
        assert [a.outputs[0].data for a in answers] == [b"aa", b"bbccdd", b"eeff"]
        assert [a.outputs[0].shape for a in answers] == [(1, 2), (3, 2), (2, 2)]
        assert {a.batch_rows for a in answers} == {6}

    async def test_time_in_the_queue_ends_when_the_batch_starts(self) -> None:
        stage = await serve(max_queue_delay_s=0.25)
        answer = stage.submit(b"aa")
        assert stage.workers.batches == {}
        stage.clock.advance(0.25)
        stage.clock.advance(1.0)
        stage.workers.complete(0)
        assert (await answer).queue_s == pytest.approx(0.25)

    async def test_byte_strings_are_cut_at_the_row_offsets(self) -> None:
        stage = await serve(spec=spec_of(y=TensorSpec("y", "BYTES", [1])))
        futures = [submit(stage.deployment, call_of(*rows))[1] for rows in ([b"aa"], [b"bb"] * 2)]
        stage.clock.advance()
        data = memoryview(bytearray(b"\x01\0\0\0x\x03\0\0\0yes\0\0\0\0"))
        stage.workers.complete(0, BatchOutput((3, 1), data, (0, 5, 12, 16)))
        answers = [(await future).outputs[0] for future in futures]
        assert [(a.shape, a.data) for a in answers] == [
            ((1, 1), b"\x01\0\0\0x"),
            ((2, 1), b"\x03\0\0\0yes\0\0\0\0"),
        ]

    async def test_what_answers_padding_is_left_out(self) -> None:
        ragged = spec_of(
            x=TensorSpec("x", "UINT8", [-1], pad=0), y=TensorSpec("y", "UINT8", [-1, 2])
        )
        stage = await serve(spec=ragged)
        short, long = (submit(stage.deployment, call_of(row))[1] for row in (b"a", b"bcd"))
        stage.clock.advance()
        data = memoryview(bytearray(b"AA????" + b"BBCCDD"))
        stage.workers.complete(0, BatchOutput((2, 3, 2), data))
        answers = [(await future).outputs[0] for future in (short, long)]
        assert [(a.shape, a.data) for a in answers] == [((1, 1, 2), b"AA"), ((1, 3, 2), b"BBCCDD")]

    async def test_other_shapes_ride_in_other_batches(self) -> None:
        stage = await serve(spec=spec_of(x=TensorSpec("x", "UINT8", [-1])), workers=2)
        submit(stage.deployment, call_of(b"a"))
        submit(stage.deployment, call_of(b"bcd"))
        stage.clock.advance()
        assert {worker: list(batches) for worker, batches in stage.workers.held.items()} == {
            0: [0],
            1: [1],
        }

    async def test_a_failed_batch_tells_the_log_why_but_not_the_callers(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        stage = await serve()
        futures = [submit(stage.deployment, call_of(row))[1] for row in (b"aa", b"bb")]
        stage.clock.advance()
        with caplog.at_level(logging.WARNING, "headrace.engine"):
            stage.workers.fail(0, "secret path")
            for batch in (1, 2):  # each alone
                stage.clock.advance()
                stage.workers.fail(batch, "secret path")
        for future in futures:
            with pytest.raises(ServingError) as caught:
                await future
            assert caught.value.reason is Reason.MODEL_FAILED
            assert "secret" not in str(caught.value)
        assert "secret path" in caplog.text


class TestRefusal:
    async def test_a_full_queue_refuses_at_once(self) -> None:
        stage = await serve(max_requests=1)
        stage.workers.lose(0)
        waiting = stage.submit(b"aa")
        assert await reason_of(stage.submit(b"bb")) is Reason.QUEUE_FULL
        assert stage.deployment.queued_requests == 1
        assert stage.deployment.queued_bytes == 2
        stage.workers.restore(0)
        stage.workers.complete(0)
        assert (await waiting).outputs[0].data == b"aa"

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"remaining_s": 0.5}, Reason.DEADLINE_EXCEEDED),
            ({"timeout_s": 0.5}, Reason.QUEUE_TIMEOUT),
            ({"timeout_s": 0.5, "remaining_s": 0.7}, Reason.QUEUE_TIMEOUT),
            ({"timeout_s": 0.7, "remaining_s": 0.5}, Reason.DEADLINE_EXCEEDED),
        ],
    )
    async def test_a_late_call_is_refused_the_moment_it_is_late(
        self, options: dict[str, float], reason: Reason
    ) -> None:
        stage = await serve(default_queue_policy=QueuePolicy(allow_timeout_override=True))
        stage.workers.lose(0)
        late = submit(stage.deployment, call_of(b"aa", **options))[1]
        patient = stage.submit(b"bb")
        stage.clock.advance(0.499)
        assert not late.done()
        stage.clock.advance(0.001)
        assert await reason_of(late) is reason
        stage.workers.restore(0)
        stage.workers.complete(0)
        assert (await patient).outputs[0].data == b"bb"

    async def test_a_call_that_outlives_the_objective_is_refused(self) -> None:
        stage = await serve(static=False, objective_s=0.5)
        stage.workers.lose(0)
        late = stage.submit(b"aa")
        in_time = stage.submit(b"bb", remaining_s=0.2)
        stage.clock.advance(0.2)
        assert await reason_of(in_time) is Reason.DEADLINE_EXCEEDED
        stage.clock.advance(0.299)
        assert not late.done()
        stage.clock.advance(0.001)
        assert await reason_of(late) is Reason.OBJECTIVE_MISSED

    @pytest.mark.parametrize("static", [False, True])
    async def test_a_call_that_no_batch_may_hold_is_refused_before_the_queue(
        self, static: bool
    ) -> None:
        stage = await serve(static=static, max_batch_bytes=4)
        fits = stage.submit(b"aa", b"bb")
        with pytest.raises(ServingError) as refused:
            stage.submit(b"aa", b"bb", b"cc")
        assert refused.value.reason is Reason.REQUEST_TOO_LARGE
        assert refused.value.details == {"model": "model", "limit": 4, "got": 6}
        stage.workers.complete(0)
        assert (await fits).outputs[0].data == b"aabb"

    @pytest.mark.parametrize("static", [False, True])
    async def test_no_batch_is_larger_than_the_declared_bound(self, static: bool) -> None:
        stage = await serve(static=static, max_batch_bytes=4)
        calls = [call_of(b"aa") for _ in range(3)]
        futures = [submit(stage.deployment, call)[1] for call in calls]
        stage.clock.advance()
        assert len(stage.workers.batches[0]) == 2
        stage.workers.complete(0)
        stage.clock.advance()
        stage.workers.complete(1)
        assert all(future.done() for future in futures)

    async def test_refusals_are_told_to_observers(self) -> None:
        stage = await serve()
        await reason_of(stage.submit(b"aa", remaining_s=0.0))
        assert stage.observer.told[-1] == "refused 0 deadline_exceeded"


class TestPreparation:
    @pytest.mark.parametrize("action", ["reject", "delay"])
    @pytest.mark.parametrize("allowed", [False, True])
    async def test_a_timeout_refuses_while_preparing_only_where_it_would_in_the_queue(
        self, action: Literal["reject", "delay"], allowed: bool
    ) -> None:
        spec = spec_of()
        preparation = PuppetExecutor(spec)
        stage = await serve(
            spec=replace(spec, prepared=spec.inputs),
            preparing=preparation,
            default_queue_policy=QueuePolicy(action, allow_timeout_override=allowed),
        )
        answers = []
        for call in (call_of(b"aa"), call_of(b"bb"), call_of(b"cc", timeout_s=0.5)):
            answers.append(asyncio.create_task(infer(stage.deployment, call)))
            await one_turn()
            stage.clock.advance()
        assert list(preparation.batches) == [0, 1], "the third one waits"
        stage.clock.advance(1.0)
        preparation.complete(0)
        stage.clock.advance()
        if allowed and action == "reject":
            assert await reason_of(answers[2]) is Reason.QUEUE_TIMEOUT
        else:
            assert list(preparation.batches) == [0, 1, 2]
        await stage.deployment.stop()
        await asyncio.gather(*answers, return_exceptions=True)

    async def test_a_drain_waits_for_what_leaves_its_preparation(self) -> None:
        spec = spec_of()
        preparation = PuppetExecutor(spec)
        stage = await serve(spec=replace(spec, prepared=spec.inputs), preparing=preparation)
        answer = asyncio.create_task(infer(stage.deployment, call_of(b"aa")))
        await one_turn()
        stage.clock.advance()
        preparation.complete(0)  # it is prepared, and does not queue yet
        drain = asyncio.create_task(stage.deployment.drain(None))
        async with asyncio.timeout(10):
            while not stage.workers.batches:
                await one_turn()
                stage.clock.advance()
        stage.workers.complete(0)
        assert await drain
        assert (await answer).outputs[0].data == b"aa"

    async def test_what_waits_and_who_is_lost_there_counts_for_the_whole(self) -> None:
        spec = spec_of()
        preparation = PuppetExecutor(spec)
        stage = await serve(spec=replace(spec, prepared=spec.inputs), preparing=preparation)
        answers = [asyncio.create_task(infer(stage.deployment, call_of(b"aa"))) for _ in range(5)]
        await one_turn()
        stage.clock.advance()
        assert len(preparation.batches) == 2
        assert (stage.deployment.queued_requests, stage.deployment.queued_bytes) == (3, 6)
        preparation.lose(0)
        assert f"worker 0 {WorkerState.LOST.value}" in stage.observer.told
        await stage.deployment.stop()
        await asyncio.gather(*answers, return_exceptions=True)

    async def test_what_its_preparation_refuses_counts_for_the_whole(self) -> None:
        spec = spec_of()
        preparation = PuppetExecutor(spec)
        stage = await serve(spec=replace(spec, prepared=spec.inputs), preparing=preparation)
        answer = asyncio.create_task(infer(stage.deployment, call_of(b"aa", remaining_s=0.0)))
        await one_turn()
        await reason_of(answer)
        assert stage.statistics.of(stage.deployment).fail.count == 1


class TestPriority:
    """Without fixed rules, on a worker that runs one row at a time and holds another one staged."""

    async def test_the_urgent_go_first_and_the_others_in_order(self) -> None:
        stage = await serve(spec=spec_of(max_batch_size=1), static=False)
        stage.submit(b"__"), stage.submit(b"__")
        waiting = {level: stage.submit(b"aa", priority=level) for level in (10, 5, 99, 0, 6, 4, 1)}
        order: list[int] = []
        for batch in range(2 + len(waiting)):
            stage.workers.complete(batch)
            stage.clock.advance()
            order += [p for p, answer in waiting.items() if answer.done() and p not in order]
        assert order == [1, 4, 5, 99, 0, 6, 10]

    async def test_a_low_priority_is_overtaken_for_a_while_but_not_for_ever(self) -> None:
        stage = await serve(spec=spec_of(max_batch_size=1), static=False)
        stage.submit(b"__"), stage.submit(b"__")
        patient = stage.submit(b"zz", priority=7)
        overtaken = 0
        # One arrives and one is answered every tenth of a second: there is always somebody else.
        while not patient.done():
            stage.submit(b"aa")
            stage.clock.advance(0.1)
            stage.workers.complete(overtaken)
            stage.clock.advance()
            overtaken += 1
        levels = 7 - 5
        assert 0 <= overtaken - levels * AGEING_S / 0.1 < 6


class TestCancellation:
    async def test_a_waiting_call_leaves(self) -> None:
        stage = await serve()
        stage.workers.lose(0)
        task = asyncio.create_task(infer(stage.deployment, call_of(b"aa")))
        await one_turn()
        assert stage.deployment.queued_requests == 1
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert stage.deployment.queued_requests == 0
        assert stage.observer.told[-1] == "cancelled 0"

    async def test_neighbours_in_the_batch_are_not_touched(self) -> None:
        stage = await serve()
        tasks = [
            asyncio.create_task(infer(stage.deployment, call_of(row)))
            for row in (b"aa", b"bb", b"cc")
        ]
        await one_turn()
        stage.clock.advance()
        tasks[1].cancel()
        await one_turn()
        stage.workers.complete(0)
        assert (await tasks[0]).outputs[0].data == b"aa"
        assert (await tasks[2]).outputs[0].data == b"cc"
        assert tasks[1].cancelled()

    async def test_a_call_that_was_cancelled_in_flight_hears_of_no_error(self) -> None:
        stage = await serve()
        request, future = submit(stage.deployment, call_of(b"aa"))
        stage.clock.advance()
        stage.deployment.cancel(request)
        stage.workers.fail(0)
        assert not future.done()
        assert not any(word.startswith("refused") for word in stage.observer.told)

    async def test_cancelling_what_has_ended_does_nothing(self) -> None:
        stage = await serve()
        request, future = submit(stage.deployment, call_of(b"aa"))
        stage.clock.advance()
        stage.workers.complete(0)
        stage.deployment.cancel(request)
        assert (await future).outputs[0].data == b"aa"
        assert "cancelled 0" not in stage.observer.told


class TestWorkers:
    async def test_a_call_outlives_the_loss_of_its_worker(self) -> None:
        stage = await serve()
        answer = stage.submit(b"aa")
        stage.workers.lose(0)
        assert not stage.deployment.ready
        assert stage.deployment.state is DeploymentState.READY
        stage.workers.restore(0)
        assert stage.deployment.ready
        stage.workers.complete(1)
        assert (await answer).outputs[0].data == b"aa"

    async def test_a_call_that_loses_two_workers_is_given_up(self) -> None:
        stage = await serve()
        answer = stage.submit(b"aa")
        stage.workers.lose(0)
        stage.workers.restore(0)
        stage.workers.lose(0)
        assert await reason_of(answer) is Reason.WORKER_LOST

    async def test_a_worker_that_hangs_is_ended_and_its_calls_are_answered_by_another(self) -> None:
        stage = await serve(workers=2, hang_timeout_s=1.5)
        answer = stage.submit(b"aa")
        stage.clock.advance(1.5)
        assert stage.workers.restarted == [0]
        stage.workers.lose(0)
        stage.workers.complete(1)
        assert (await answer).outputs[0].data == b"aa"

    async def test_an_answer_that_comes_after_all_reaches_nobody_twice(self) -> None:
        stage = await serve(workers=2, hang_timeout_s=1.5)
        answer = stage.submit(b"aa")
        stage.clock.advance(1.5)
        stage.workers.complete(0)
        assert not answer.done()
        stage.workers.complete(1)
        assert (await answer).outputs[0].data == b"aa"

    async def test_an_idle_deployment_is_not_woken_by_its_watchdog(self) -> None:
        stage = await serve(hang_timeout_s=1.5)
        answer = stage.submit(b"aa")
        stage.workers.complete(0)
        stage.clock.advance(100.0)
        await answer
        assert stage.clock.armed == 1
        assert stage.workers.restarted == []

    async def test_the_index_says_that_and_why_no_worker_lives(self) -> None:
        stage = await serve()
        assert stage.deployment.shown == (DeploymentState.READY, "")
        stage.workers.lose(0)
        state, reason = stage.deployment.shown
        assert state is DeploymentState.UNAVAILABLE
        assert (
            reason == "its last worker was lost (killed by SIGKILL); another one is being started"
        )
        stage.workers.restore(0)
        assert stage.deployment.shown == (DeploymentState.READY, "")

    async def test_how_a_worker_was_lost_may_become_known_later(self) -> None:
        stage = await serve()
        stage.deployment.worker_lost(0, "")
        told = list(stage.observer.told)
        stage.deployment.worker_state_changed(0, WorkerState.LOST, "exited with status 3")
        assert stage.observer.told == told, "one loss, told once"
        assert "exited with status 3" in stage.deployment.shown[1]

    async def test_nobody_waits_for_ever_in_a_crash_loop(self) -> None:
        stage = await serve()
        stage.workers.lose(0)
        waiting = stage.submit(b"aa")
        stage.clock.advance(60.0)
        assert await reason_of(waiting) is Reason.MODEL_UNAVAILABLE
        assert await reason_of(stage.submit(b"bb")) is Reason.MODEL_UNAVAILABLE
        stage.workers.restore(0)
        answer = stage.submit(b"cc")
        stage.workers.complete(0)
        assert (await answer).outputs[0].data == b"cc"

    async def test_a_batch_that_nobody_waits_for_is_ignored(self) -> None:
        stage = await serve()
        before = list(stage.observer.told)
        stage.deployment.batch_completed(77, [], TIMING)
        assert stage.observer.told == before


class TestLife:
    async def test_a_model_that_loads_is_ready(self) -> None:
        stage = await serve(workers=2)
        assert stage.deployment.ready
        assert stage.deployment.loaded
        assert stage.deployment.devices == ["cpu", "cpu"]
        assert stage.observer.told == ["added", "worker 0 ready", "worker 1 ready", "READY"]

    async def test_a_model_that_does_not_load_says_why(self) -> None:
        stage = await serve(load_error="no such file")
        assert stage.deployment.state is DeploymentState.UNAVAILABLE
        assert stage.deployment.reason == "no such file"
        assert not stage.deployment.loaded
        assert await stage.deployment.drain(1.0)
        await stage.deployment.stop()
        assert stage.deployment.reason == "no such file"

    async def test_a_drain_waits_for_what_was_admitted(self) -> None:
        stage = await serve()
        answer = stage.submit(b"aa")
        drain = asyncio.create_task(stage.deployment.drain(60.0))
        await one_turn()
        assert stage.deployment.state is DeploymentState.UNLOADING
        assert await reason_of(stage.submit(b"bb")) is Reason.STOPPING
        assert not drain.done()
        stage.workers.complete(0)
        assert (await answer).outputs[0].data == b"aa"
        assert await drain

    async def test_a_drain_that_takes_too_long_gives_everyone_an_error(self) -> None:
        stage = await serve(workers=1, max_queue_delay_s=9.0)
        running = submit(stage.deployment, call_of(*[b"aa"] * 8))[1]
        waiting = stage.submit(b"bb")
        assert not await stage.deployment.drain(0.0)
        assert await reason_of(running) is Reason.STOPPING
        assert await reason_of(waiting) is Reason.STOPPING

    async def test_stopping_ends_the_workers_and_tells_whoever_waits(self) -> None:
        stage = await serve()
        answer = stage.submit(b"aa")
        await stage.deployment.stop()
        assert await reason_of(answer) is Reason.STOPPING
        assert stage.workers.stopped == 1
        assert stage.deployment.state is DeploymentState.UNAVAILABLE
        assert not stage.deployment.ready

    async def test_a_call_that_comes_while_stopping_does_not_wait_for_ever(self) -> None:
        stage = await serve()
        await stage.deployment.stop()
        assert await reason_of(stage.submit(b"aa")) is Reason.STOPPING

    async def test_killing_ends_the_workers_without_a_word(self) -> None:
        stage = await serve()
        future = submit(stage.deployment, call_of(b"aa"))[1]
        stage.deployment.kill()
        assert stage.workers.killed == 1
        assert not future.done()


class TestTimers:
    async def test_a_wakeup_that_moves_later_arms_no_new_timer(self) -> None:
        stage = await serve()
        stage.workers.lose(0)
        first, _ = submit(stage.deployment, call_of(b"aa", remaining_s=1.0))
        stage.deployment.cancel(first)
        armed = stage.clock.armed
        late = [stage.submit(b"bb", remaining_s=5.0 + n) for n in range(10)]
        assert stage.clock.armed == armed
        stage.clock.advance(1.0)
        assert stage.clock.armed == armed + 1, "the timer that came too early asks again"
        stage.clock.advance(4.0)
        assert await reason_of(late[0]) is Reason.DEADLINE_EXCEEDED

    async def test_an_earlier_wakeup_replaces_the_timer(self) -> None:
        stage = await serve()
        stage.workers.lose(0)
        late = stage.submit(b"aa", remaining_s=5.0)
        soon = stage.submit(b"bb", remaining_s=1.0)
        stage.clock.advance(1.0)
        assert await reason_of(soon) is Reason.DEADLINE_EXCEEDED
        stage.clock.advance(4.0)
        assert await reason_of(late) is Reason.DEADLINE_EXCEEDED

    async def test_arrivals_of_one_moment_are_decided_together(self) -> None:
        stage = await serve()
        for _ in range(5):
            submit(stage.deployment, call_of(b"aa"))
        assert stage.workers.batches == {}
        stage.clock.advance()
        assert [len(batch) for batch in stage.workers.batches.values()] == [5]

    async def test_who_waits_until_all_that_came_is_read_rides_when_the_process_is_idle(
        self,
    ) -> None:
        stage = await serve(static=False)
        for _ in range(4):
            submit(stage.deployment, call_of(b"aa"))
        stage.clock.advance()
        stage.workers.complete(0)
        stage.submit(b"bb")
        stage.submit(b"cc")
        assert list(stage.workers.batches) == [0]
        assert len(stage.clock.waiting_for_idle) == 1
        stage.clock.be_idle()
        assert [len(batch) for batch in stage.workers.batches.values()] == [4, 2]
        assert stage.clock.waiting_for_idle == []
