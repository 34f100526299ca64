"""Who may run now. A slot is a bundle of counted places; whoever waits longest for a place gets it first.

| slot | places it takes |
|---|---|
| `cpu` | one of JOB_CPU_CONCURRENCY |
| `light` | one of LIGHT_JOBS: for what takes well under a second and is waited for |
| `gpu` | one of ENGINE_BUILD_CONCURRENCY, and the GPU itself with GPU_EXCLUSIVE_BUILDS |
| `dla0`, `dla1` | one of ENGINE_BUILD_CONCURRENCY, and the core itself |
| `cpu!`, `gpu!`, `dla0!`, `dla1!` | the whole device, because a number taken beside other work is no number |
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from app.config import Settings
from app.schemas.kind import Slot

LIGHT_JOBS = 4

Wait = Callable[[Awaitable[Any]], Awaitable[Any]]


@dataclass(eq=False)
class Held:
    """A slot while it is held. `most_builds` is how many builds, this one included, have held theirs at once."""

    builds: bool
    most_builds: int = 0


class Slots:
    """Counted places with a queue. A waiter that is short of a place keeps it from all who came later."""

    def __init__(self, settings: Settings) -> None:
        self.capacity: dict[str, int] = {
            "cpu": settings.job_cpu_concurrency,
            "light": LIGHT_JOBS,
            "build": settings.engine_build_concurrency,
            "gpu": 1 if settings.gpu_exclusive_builds else settings.engine_build_concurrency,
            "dla0": 1,
            "dla1": 1,
        }
        self._taken: Counter[str] = Counter()
        self._held: list[Held] = []
        self._waiting: list[tuple[int, Mapping[str, int], asyncio.Future[Held]]] = []

    def needs(self, slot: Slot) -> dict[str, int]:
        """The places that a slot takes."""
        if slot.device in {"cpu", "light"}:
            return {slot.device: self.capacity[slot.device] if slot.exclusive else 1}
        needs = {"build": self.capacity["build"] if slot.exclusive else 1}
        needs[slot.device] = self.capacity[slot.device] if slot.exclusive else 1
        return needs

    def busy(self) -> int:
        """How many jobs hold a slot."""
        return len(self._held)

    def width(self, slot: Slot) -> int:
        """How many jobs of this slot can run at once."""
        return min(self.capacity[place] // count for place, count in self.needs(slot).items())

    @asynccontextmanager
    async def hold(self, slot: Slot, order: int, wait: Wait) -> AsyncIterator[Held]:
        """Waits, by `wait`, for the slot behind everybody with a smaller `order`, and keeps it for the block."""
        needs = self.needs(slot)
        turn: asyncio.Future[Held] = asyncio.get_running_loop().create_future()
        self._waiting.append((order, needs, turn))
        self._waiting.sort(key=lambda waiter: waiter[0])
        self._serve()
        try:
            yield await wait(turn)
        finally:
            if turn.done() and not turn.cancelled():
                self._taken.subtract(needs)
                self._held.remove(turn.result())
            else:
                self._waiting = [waiter for waiter in self._waiting if waiter[2] is not turn]
            self._serve()

    def _serve(self) -> None:
        reserved: set[str] = set()
        for waiter in list(self._waiting):
            _, needs, turn = waiter
            short = {place for place, count in needs.items() if self._taken[place] + count > self.capacity[place]}
            if turn.cancelled():
                continue
            if short or reserved & set(needs):
                reserved |= short  # only these: a job that waits for a DLA core does not hold up the GPU's
                continue
            self._taken.update(needs)
            self._waiting.remove(waiter)
            turn.set_result(self._hold(needs))

    def _hold(self, needs: Mapping[str, int]) -> Held:
        held = Held("build" in needs)
        self._held.append(held)
        builds = [one for one in self._held if one.builds]
        for one in builds:
            one.most_builds = max(one.most_builds, len(builds))
        return held
