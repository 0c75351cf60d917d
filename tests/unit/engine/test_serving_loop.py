"""The loop tells that it is idle when nothing is left to run, and not before."""

from __future__ import annotations

import asyncio
import socket

import pytest

from headrace_server.engine.clock import LoopClock
from headrace_server.engine.serving_loop import ServingLoop


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
