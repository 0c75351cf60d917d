"""The loop's two moments of its own, the end of a turn and idleness, and its timers."""

from __future__ import annotations

import asyncio
import socket

import pytest

from headrace_server.engine.clock import LoopClock
from headrace_server.serving_loop import ServingLoop, call_last_of


def run(told: list[str], steps: int, *, readable: bool = False) -> None:
    """Ask to be told at once, run so many callbacks one after the other, and wait."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            loop.add_reader(ours, lambda: told.append(ours.recv(1).decode()))
            if readable:
                theirs.send(b"r")

            def step(number: int) -> None:
                told.append(str(number))
                if number < steps:
                    loop.call_soon(step, number + 1)

            loop.call_soon(step, 1)
            LoopClock().call_when_idle(lambda: (told.append("idle"), done.set_result(None))[0])
            await done
            loop.remove_reader(ours)

    with asyncio.Runner(loop_factory=ServingLoop) as runner:
        runner.run(main())


@pytest.mark.parametrize("steps", [1, 5])
def test_callbacks_that_follow_each_other_come_first(steps: int) -> None:
    told: list[str] = []
    run(told, steps)
    assert told == [*(str(number + 1) for number in range(steps)), "idle"]


def test_a_file_that_is_ready_comes_first() -> None:
    told: list[str] = []
    run(told, 1, readable=True)
    assert told[-1] == "idle"
    assert "r" in told


def test_on_another_loop_idle_is_after_what_is_at_hand() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        loop.call_soon(told.append, "at hand")
        LoopClock().call_when_idle(lambda: told.append("idle"))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        return told

    assert asyncio.run(main()) == ["at hand", "idle"]


def turn(loop_factory: type[asyncio.SelectorEventLoop]) -> list[str]:
    """A callback that has things done last, another one at hand, and one that is not yet."""
    told: list[str] = []

    async def main() -> None:
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        call_last = call_last_of(loop)

        def fail() -> None:
            raise ValueError("in the end")

        def first() -> None:
            loop.call_soon(told.append, "next turn")
            call_last(lambda: told.append("last"))
            call_last(lambda: told.append("cancelled")).cancel()
            call_last(fail)
            call_last(lambda: loop.call_soon(done.set_result, None))

        loop.set_exception_handler(lambda _, context: told.append(str(context["exception"])))
        loop.call_soon(first)
        loop.call_soon(told.append, "this turn")
        await done

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main())
    return told


def test_what_is_called_last_ends_the_turn() -> None:
    assert turn(ServingLoop) == ["this turn", "last", "in the end", "next turn"]


def test_on_another_loop_last_is_soon() -> None:
    assert turn(asyncio.SelectorEventLoop) == ["this turn", "next turn", "last", "in the end"]


def test_timers_and_files_are_not_forgotten_for_what_comes_last() -> None:
    async def main() -> list[str]:
        told: list[str] = []
        loop = asyncio.get_running_loop()
        done = loop.create_future()
        ours, theirs = socket.socketpair()

        def last() -> None:
            loop.call_later(0.001, lambda: (told.append("timer"), theirs.send(b"f")))

        with ours, theirs:
            loop.add_reader(ours, lambda: (told.append("file"), done.set_result(None)))
            call_last_of(loop)(last)
            await done
            loop.remove_reader(ours)
        return told

    with asyncio.Runner(loop_factory=ServingLoop) as runner:
        assert runner.run(main()) == ["timer", "file"]


@pytest.mark.parametrize("wait_s", [0.0003, 0.0033])
def test_timers_are_not_a_millisecond_late(wait_s: float) -> None:
    async def late_s() -> float:
        loop = asyncio.get_running_loop()
        ended: asyncio.Future[float] = loop.create_future()
        due_s = loop.time() + wait_s
        loop.call_at(due_s, lambda: ended.set_result(loop.time()))
        return await ended - due_s

    async def main() -> list[float]:
        return [await late_s() for _ in range(50)]

    with asyncio.Runner(loop_factory=ServingLoop) as runner:
        # epoll alone is always 0.7 ms late with these; on a busy machine single ones are, too.
        assert 0.0 <= min(runner.run(main())) < 0.0005


@pytest.mark.parametrize(("ready_s", "wait_s"), [(0.0, 0.002), (0.02, 60.0)])
def test_a_file_that_gets_ready_ends_a_wait_for_a_timer(ready_s: float, wait_s: float) -> None:
    async def main() -> str:
        loop = asyncio.get_running_loop()
        told = loop.create_future()
        ours, theirs = socket.socketpair()
        with ours, theirs:
            loop.add_reader(ours, lambda: told.done() or told.set_result("file"))
            timer = loop.call_later(wait_s, lambda: told.done() or told.set_result("timer"))
            loop.call_later(ready_s, theirs.send, b"r") if ready_s else theirs.send(b"r")
            try:
                return await told
            finally:
                timer.cancel()
                loop.remove_reader(ours)

    with asyncio.Runner(loop_factory=ServingLoop) as runner:
        assert runner.run(main()) == "file"
