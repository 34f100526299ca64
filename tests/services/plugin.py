"""The servers as fixtures, and what pytest says of them: which one answered, and what passed on which."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from app.config import Settings
from tests.services import servers
from tests.services.install import SERVICES
from tests.services.servers import MongoServer, S3Server, Stores

AnyServer = TypeVar("AnyServer", S3Server, MongoServer)

BINARIES = {"minio": "minio", "ferretdb": "ferretdb", "seaweedfs": "seaweedfs/bin/weed"}
RAN_ON = "ran on"
"""The name of a test's property that says which stores it ran on."""

PARAMETERS = {
    "record_environment": "contract",
    "artifact_environment": "contract",
    "s3_server": "contract",
    "stores": "service",
}
"""The fixtures that choose a test's stores by their parameter."""

S3_SERVERS = ["minio", "seaweedfs", *(["s3-external"] if servers.external_s3() else [])]
MONGO_SERVERS = ["ferretdb", *(["mongo-external"] if servers.external_mongo() else [])]

EMBEDDED = "sqlite+local"
STORES = [
    EMBEDDED,
    "ferretdb-pymongo+minio",
    "ferretdb-motor+seaweedfs",
    *([f"{MONGO_SERVERS[-1]}-pymongo+{S3_SERVERS[-1]}"] if len(S3_SERVERS + MONGO_SERVERS) > 3 else []),
]
"""Pairs of a record store and an artifact store that a service of the tests may run on."""

_answered: dict[str, str] = {}


def pytest_configure(config: pytest.Config) -> None:
    """No test sees the settings of who runs it; the servers that they name were noted before."""
    config.addinivalue_line("markers", "every_store: runs on every pair of stores, on the servers with SLOW=1 only")
    for name in Settings.model_fields:
        os.environ.pop(name.upper(), None)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """What a service answers may depend on its stores: tests with this mark run once on every pair."""
    mark = metafunc.definition.get_closest_marker("every_store")
    if mark and "stores" in metafunc.fixturenames:
        pairs = [EMBEDDED, *(pytest.param(name, marks=pytest.mark.slow) for name in STORES[1:])]
        metafunc.parametrize("stores", pairs, indirect=True, scope="session")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notes in every test that runs on stores of its own which ones these are."""
    for item in items:
        given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        for name, value in given.items():
            if name in PARAMETERS:
                item.user_properties.append((RAN_ON, f"{PARAMETERS[name]} on {value}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """One line for each server that answered, and for each store what came out on it."""
    if _answered:
        terminalreporter.section("servers")
    for name, product in sorted(_answered.items()):
        terminalreporter.line(f"{name}: {product}")
    counts: dict[str, Counter[str]] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.stats.get(outcome, []):
            for name, value in report.user_properties:
                if name == RAN_ON:
                    counts.setdefault(value, Counter())[outcome] += 1
    for where, counted in sorted(counts.items()):
        terminalreporter.line(f"{where}: {', '.join(f'{count} {outcome}' for outcome, count in counted.items())}")


# -- ours ---------------------------------------------------------------------------------------------------------
def binary(name: str, folder: Path = SERVICES) -> Path:
    """A server's program. Where it is not installed the test is skipped; in CI, where it must be, it fails."""
    found = folder / BINARIES[name]
    if not found.is_file():
        give_up = pytest.fail if os.environ.get("CI") == "true" else pytest.skip
        give_up(f"{name} is not here: `make services` puts it into .services/")
    return found


def started(make: Callable[[Path, Path], AnyServer], name: str, folder: Path, stack: ExitStack) -> AnyServer:
    """A server of ours that answers and ends with the stack."""
    server = make(binary(name), folder)
    stack.callback(server.close)
    server.start()
    _answered[name] = server.product()
    return server


@pytest.fixture(scope="session")
def at_end() -> Iterator[ExitStack]:
    """What all tests share is ended here, the last started first: no service loses the servers that it needs."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture(scope="session")
def minio_server(tmp_path_factory: pytest.TempPathFactory, at_end: ExitStack) -> S3Server:
    return started(servers.minio, "minio", tmp_path_factory.mktemp("minio"), at_end)


@pytest.fixture(scope="session")
def seaweedfs_server(tmp_path_factory: pytest.TempPathFactory, at_end: ExitStack) -> S3Server:
    return started(servers.seaweedfs, "seaweedfs", tmp_path_factory.mktemp("seaweedfs"), at_end)


@pytest.fixture(scope="session")
def ferretdb_server(tmp_path_factory: pytest.TempPathFactory, at_end: ExitStack) -> MongoServer:
    return started(servers.ferretdb, "ferretdb", tmp_path_factory.mktemp("ferretdb"), at_end)


@pytest.fixture
def make_minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], S3Server]]:
    """Starts a MinIO of this test alone, which it may kill and start again."""
    with ExitStack() as stack:
        yield lambda: started(servers.minio, "minio", tmp_path_factory.mktemp("minio"), stack)


@pytest.fixture
def make_ferretdb(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., MongoServer]]:
    """Starts a FerretDB of this test alone, which it may kill and start again; `user` and `password` close it."""
    with ExitStack() as stack:

        def make(user: str = "", password: str = "") -> MongoServer:
            program = partial(servers.ferretdb, user=user, password=password)
            return started(program, "ferretdb", tmp_path_factory.mktemp("ferretdb"), stack)

        yield make


# -- any ----------------------------------------------------------------------------------------------------------
def _external(server: AnyServer | None) -> AnyServer:
    assert server is not None, "no server was named"
    assert server.answers(), f"{server.name} does not answer"
    _answered[server.name] = server.product()
    return server


def s3_server_named(request: pytest.FixtureRequest, name: str) -> S3Server:
    """One of S3_SERVERS, started when it is wanted first."""
    found = _external(servers.external_s3()) if name == "s3-external" else request.getfixturevalue(f"{name}_server")
    assert isinstance(found, S3Server)
    return found


def mongo_server_named(request: pytest.FixtureRequest, name: str) -> MongoServer:
    """One of MONGO_SERVERS, started when it is wanted first."""
    found = (
        _external(servers.external_mongo()) if name == "mongo-external" else request.getfixturevalue(f"{name}_server")
    )
    assert isinstance(found, MongoServer)
    return found


@pytest.fixture(scope="session")
def stores(request: pytest.FixtureRequest) -> Stores:
    """SQLite and a folder; with the mark `every_store` each pair of STORES in turn."""
    name: Any = getattr(request, "param", EMBEDDED)
    if name == EMBEDDED:
        return Stores(name)
    records, _, artifacts = name.partition("+")
    server, _, driver = records.rpartition("-")
    return Stores(name, s3_server_named(request, artifacts), mongo_server_named(request, server), driver)
