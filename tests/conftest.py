"""What every test may ask for: settings, the real service, a receiver of its callbacks, a project of its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from app.config import Settings
from tests.harness import Receiver, Service, receiving
from tests.services.servers import Stores

pytest_plugins = ["tests.services.plugin"]

_numbers = itertools.count(1)


@pytest.fixture
def anyio_backend() -> str:
    """The service runs on asyncio only."""
    return "asyncio"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of a service in a folder of its own, untouched by the environment of who runs the tests."""
    return Settings(
        workspace_dir=tmp_path / "workspace",
        kind_packages=("tests.kinds",),
        callback_allowed_hosts=("127.0.0.1",),
        callback_retry_sec=(0.05, 0.05, 0.05),
        callback_timeout_sec=5,
        api_keys="",
    )


@pytest.fixture(scope="session")
def shared_services() -> dict[str, Service]:
    """The services that tests share, by their stores; each runs until the end once a test has wanted it."""
    return {}


@pytest.fixture(scope="session")
def service(
    stores: Stores,
    shared_services: dict[str, Service],
    at_end: ExitStack,
    tmp_path_factory: pytest.TempPathFactory,
) -> Service:
    """One service for all tests that leave it as it was: the fork server's imports take seconds."""
    if stores.name not in shared_services:
        running = Service(tmp_path_factory.mktemp("service"), at_end.enter_context(stores.fresh()))
        at_end.callback(running.close)
        shared_services[stores.name] = running.start()
    return shared_services[stores.name]


@pytest.fixture
def make_service(tmp_path: Path, stores: Stores) -> Iterator[Callable[..., Service]]:
    """Starts services for tests that kill or reconfigure them: `make_service(JOB_TIMEOUT_SEC="2")`.

    `name` chooses the folder and the stores: the same name is the same ones, so that a restart finds what was left.
    """
    given: dict[str, dict[str, str]] = {}
    with ExitStack() as stack:

        def make(name: str = "service", *, start: bool = True, **environment: str) -> Service:
            if name not in given:
                given[name] = stack.enter_context(stores.fresh())
            running = Service(tmp_path / name, given[name] | environment)
            stack.callback(running.close)
            return running.start() if start else running

        yield make


@pytest.fixture
def pid() -> str:
    """A project of this test alone."""
    return f"P{next(_numbers):06d}"


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with receiving() as running:
        yield running


@pytest.fixture(scope="session")
def pills_model() -> Path:
    """The tests' own YOLOv8n, trained on drawn pills."""
    return Path(__file__).parent / "assets" / "pills" / "pills_yolov8n.pt"
