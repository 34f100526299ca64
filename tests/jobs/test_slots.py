"""Who runs when: places are counted, waiting is first come first served, and nobody waits for a place he needs not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from app.config import Settings
from app.jobs.slots import Slots
from app.schemas.kind import Slot


async def plain(turn: Awaitable[None]) -> None:
    await turn


class Crowd:
    """Jobs that take a slot, note it, and keep it until they are told."""

    def __init__(self, slots: Slots) -> None:
        self.slots = slots
        self.running: list[str] = []
        self.history: list[str] = []
        self._leave: dict[str, asyncio.Event] = {}
        self._tasks: list[asyncio.Task[None]] = []

    async def come(self, name: str, slot: str, order: int) -> None:
        self._leave[name] = asyncio.Event()
        self._tasks.append(asyncio.ensure_future(self._stay(name, Slot.parse(slot), order)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)

    async def _stay(self, name: str, slot: Slot, order: int) -> None:
        async with self.slots.hold(slot, order, plain):
            self.running.append(name)
            self.history.append(name)
            await self._leave[name].wait()
            self.running.remove(name)

    async def leave(self, name: str) -> None:
        self._leave[name].set()
        for _ in range(5):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@pytest.fixture
def slots(settings: Settings) -> Slots:
    return Slots(settings)


def test_builds_never_exceed_their_number_and_a_dla_core_takes_one() -> None:
    async def scene() -> None:
        crowd = Crowd(Slots(Settings(engine_build_concurrency=3)))
        for order, (name, slot) in enumerate([("a", "dla0"), ("b", "dla0"), ("c", "dla1"), ("d", "gpu"), ("e", "gpu")]):
            await crowd.come(name, slot, order)
        assert crowd.running == ["a", "c", "d"], "b waits for the core, e for a place; b does not hold up the others"
        await crowd.leave("d")
        assert crowd.running == ["a", "c", "e"]
        await crowd.leave("a")
        assert crowd.running == ["c", "e", "b"]
        await crowd.end()

    asyncio.run(scene())


def test_a_light_job_does_not_wait_for_builds(slots: Slots) -> None:
    async def scene() -> None:
        crowd = Crowd(slots)
        for order in range(5):
            await crowd.come(f"build {order}", "gpu", order)
        await crowd.come("stats", "cpu", 9)
        assert "stats" in crowd.running
        await crowd.end()

    asyncio.run(scene())


def test_a_benchmark_takes_its_device_alone_and_is_not_starved() -> None:
    async def scene() -> None:
        crowd = Crowd(Slots(Settings(job_cpu_concurrency=2)))
        await crowd.come("first", "cpu", 1)
        await crowd.come("benchmark", "cpu!", 2)
        await crowd.come("later", "cpu", 3)
        assert crowd.running == ["first"], "later may not overtake the benchmark"
        await crowd.leave("first")
        assert crowd.running == ["benchmark"]
        await crowd.leave("benchmark")
        assert crowd.running == ["later"]
        await crowd.end()

    asyncio.run(scene())


def test_who_came_first_is_served_first_whoever_was_ready_first() -> None:
    async def scene() -> None:
        crowd = Crowd(Slots(Settings(job_cpu_concurrency=1)))
        await crowd.come("running", "cpu", 1)
        await crowd.come("third", "cpu", 3)
        await crowd.come("second", "cpu", 2)
        await crowd.leave("running")
        await crowd.leave("second")
        assert crowd.history == ["running", "second", "third"]
        await crowd.end()

    asyncio.run(scene())


def test_one_that_gives_up_waiting_leaves_no_place_taken() -> None:
    async def scene() -> None:
        slots = Slots(Settings(job_cpu_concurrency=1))
        crowd = Crowd(slots)
        await crowd.come("running", "cpu", 1)
        await crowd.come("gives up", "cpu", 2)
        crowd._tasks[1].cancel()
        await asyncio.sleep(0)
        await crowd.leave("running")
        assert slots.busy() == 0
        await crowd.come("next", "cpu", 3)
        assert crowd.running == ["next"]
        await crowd.end()

    asyncio.run(scene())
