"""Real servers as subprocesses: S3 by MinIO and SeaweedFS, MongoDB's protocol by FerretDB. Or somebody's own servers.

Each listens on loopback ports of its own and keeps its data in a folder of its own. It can be killed and started again,
on the same ports and data. None outlives the process that started it.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import pymongo
import urllib3
from minio import Minio
from minio.deleteobjects import DeleteObject
from minio.error import MinioException, S3Error

from tests.services.process import Process

ACCESS_KEY, SECRET_KEY = "testkey", "testsecret1"
READY_BUCKET = "is-it-ready"
Driver = Literal["pymongo", "motor"]

_numbers = itertools.count(1)


def fresh_name() -> str:
    """A name that no other test of this run and no other run has; good for buckets and databases."""
    return f"optimizing-test-{os.getpid()}-{os.urandom(3).hex()}-{next(_numbers)}"


def free_ports(count: int) -> list[int]:
    """Ports of the loopback that are free now, all different."""
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


@dataclass
class Server:
    """A server, ours or (without `process`) somebody else's, which is used and never started or ended."""

    name: str
    process: Process | None = field(default=None, kw_only=True)

    @property
    def external(self) -> bool:
        return self.process is None

    def start(self) -> None:
        self._ours.start()

    def kill(self) -> None:
        self._ours.kill()

    def stop(self) -> None:
        self._ours.stop()

    def close(self) -> None:
        """Ends our process at once and removes all that it wrote."""
        if self.process is not None:
            self.process.kill()
            shutil.rmtree(self.process.folder)
            for path in self.process.litter:
                path.unlink(missing_ok=True)

    @property
    def is_there(self) -> bool:
        return self.process is None or self.process.is_running

    @property
    def _ours(self) -> Process:
        assert self.process is not None, f"{self.name} is not ours to start or end"
        return self.process


# -- S3 -----------------------------------------------------------------------------------------------------------
@dataclass
class S3Server(Server):
    """A server of S3. The keys may make buckets."""

    endpoint: str
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY
    region: str = "us-east-1"

    def environment(self, bucket: str) -> dict[str, str]:
        """The settings of a service whose artifacts go into this bucket."""
        return {
            "ARTIFACT_STORE": "minio",
            "S3_ENDPOINT": self.endpoint,
            "S3_ACCESS_KEY": self.access_key,
            "S3_SECRET_KEY": self.secret_key,
            "S3_BUCKET": bucket,
            "S3_REGION": self.region,
        }

    @contextmanager
    def fresh(self) -> Iterator[dict[str, str]]:
        """The settings of a service with a bucket of its own, not made yet; in the end it is dropped."""
        bucket = fresh_name()
        try:
            yield self.environment(bucket)
        finally:
            if self.is_there:
                self.drop(bucket)

    @contextmanager
    def client(self) -> Iterator[Minio]:
        """A client that tries once and keeps no connection."""
        parts = urlsplit(self.endpoint)
        with urllib3.PoolManager(retries=False, timeout=30.0) as pool:
            yield Minio(
                parts.netloc,
                self.access_key,
                self.secret_key,
                secure=parts.scheme == "https",
                region=self.region,
                http_client=pool,
            )

    def drop(self, bucket: str) -> None:
        """Removes a bucket with all that is in it, if it is there."""
        with self.client() as client:
            if not client.bucket_exists(bucket):
                return
            with suppress(S3Error):  # some remove it with all that is in it, some only when it is empty
                client.remove_bucket(bucket)
                return
            found = client.list_objects(bucket, recursive=True)
            faults = list(client.remove_objects(bucket, (DeleteObject(str(one.object_name)) for one in found)))
            assert not faults, faults
            client.remove_bucket(bucket)

    def answers(self) -> bool:
        """Whether it lists its buckets to who has these keys."""
        return self._asked(Minio.list_buckets)

    def takes_files(self) -> bool:
        """Whether it stores a file: SeaweedFS answers seconds before it can. The file stays."""

        def put(client: Minio) -> None:
            if not client.bucket_exists(READY_BUCKET):
                client.make_bucket(READY_BUCKET)
            client.put_object(READY_BUCKET, "file", BytesIO(b"content"), 7)

        return self._asked(put)

    def _asked(self, question: Callable[[Minio], object]) -> bool:
        with self.client() as client:
            try:
                question(client)
            except (urllib3.exceptions.HTTPError, MinioException, ValueError):  # ValueError: its answer is no XML
                return False
        return True

    def product(self) -> str:
        """What it calls itself."""
        answer = urllib3.request("GET", self.endpoint, retries=False, timeout=30.0)
        return f"{answer.headers.get('Server', 'a server without a name')} at {self.endpoint}"


def minio(binary: Path, folder: Path) -> S3Server:
    """A MinIO that is not started yet."""
    (port,) = free_ports(1)
    server = S3Server("minio", f"http://127.0.0.1:{port}")
    server.process = Process(
        [binary, "server", "--address", f"127.0.0.1:{port}", folder / "data"],
        folder,
        server.takes_files,
        {
            "MINIO_ROOT_USER": ACCESS_KEY,
            "MINIO_ROOT_PASSWORD": SECRET_KEY,
            "MINIO_BROWSER": "off",
            "MINIO_UPDATE": "off",
        },
    )
    return server


def seaweedfs(binary: Path, folder: Path) -> S3Server:
    """A SeaweedFS that is not started yet: master, volumes, filer and S3 in one process."""
    ports = free_ports(8)
    server = S3Server("seaweedfs", f"http://127.0.0.1:{ports[0]}")
    allowed = ["Admin", "Read", "Write", "List", "Tagging"]
    keys = [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}]
    (folder / "s3.json").write_text(
        json.dumps({"identities": [{"name": "tests", "credentials": keys, "actions": allowed}]})
    )
    parts = ("s3", "master", "volume", "filer")
    listen = [f"-{part}.port={port}" for part, port in zip(parts, ports[:4], strict=True)]
    inner = dict(zip(parts, ports[4:], strict=True))
    listen += [f"-{part}.port.grpc={port}" for part, port in inner.items()]
    (folder / "data").mkdir()
    server.process = Process(
        [
            *(binary, "-logtostderr=true", "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1"),
            *("-s3", f"-s3.config={folder / 's3.json'}", "-filer", *listen, "-s3.port.iceberg=0", "-s3.port.lance=0"),
            *(f"-s3.localSocket={folder}/s3.sock", f"-filer.localSocket={folder}/filer.sock"),
            *("-volume.max=2000", "-master.volumeSizeLimitMB=128", "-master.telemetry=false"),
            *("-master.electionTimeout=1s", "-volume.preStopSeconds=0"),  # it is alone: nobody votes, nobody waits
        ],
        folder,
        server.takes_files,
        {"WEED_MASTER_VOLUME_GROWTH_COPY_1": "1"},  # each bucket has volumes of its own; seven at once by default
        [Path(f"/tmp/seaweedfs-{part}-grpc-{port}.sock") for part, port in inner.items()],
    )
    return server


# -- MongoDB ------------------------------------------------------------------------------------------------------
@dataclass
class MongoServer(Server):
    """A server of MongoDB's protocol."""

    url: str

    def environment(self, database: str, driver: Driver = "pymongo") -> dict[str, str]:
        """The settings of a service whose records go into this database."""
        return {
            "RECORD_STORE": "mongo",
            "MONGO_URL": self.url,
            "MONGO_DATABASE": database,
            "MONGO_DRIVER": driver,
        }

    @contextmanager
    def fresh(self, driver: Driver = "pymongo") -> Iterator[dict[str, str]]:
        """The settings of a service with a database of its own; in the end it is dropped."""
        database = fresh_name()
        try:
            yield self.environment(database, driver)
        finally:
            if self.is_there:
                with self.client() as client:
                    client.drop_database(database)

    @contextmanager
    def client(self) -> Iterator[pymongo.MongoClient[dict[str, Any]]]:
        client: pymongo.MongoClient[dict[str, Any]] = pymongo.MongoClient(self.url, serverSelectionTimeoutMS=2000)
        with closing(client):
            yield client

    def answers(self) -> bool:
        with self.client() as client:
            try:
                client.admin.command("ping")
            except pymongo.errors.PyMongoError:
                return False
        return True

    def product(self) -> str:
        """What it calls itself. The URL is not shown: it may have a password."""
        with self.client() as client:
            built = client.admin.command("buildInfo")
            ferretdb = built.get("ferretdb", {}).get("version") or built.get("ferretdbVersion")
            host, port = client.address or ("?", 0)
        return f"MongoDB {built['version']}{f' by FerretDB {ferretdb}' if ferretdb else ''} at {host}:{port}"


def ferretdb(binary: Path, folder: Path, user: str = "", password: str = "") -> MongoServer:
    """A FerretDB on SQLite that is not started yet. With a user, nobody else may do anything."""
    (port,) = free_ports(1)
    who = f"{user}:{password}@" if user else ""
    setup = ["--test-enable-new-auth", "--setup-database=admin", f"--setup-username={user}"]
    server = MongoServer("ferretdb", f"mongodb://{who}127.0.0.1:{port}/?directConnection=true")
    server.process = Process(
        [
            *(binary, "--handler=sqlite", f"--sqlite-url=file:{folder}/", f"--state-dir={folder}"),
            *(f"--listen-addr=127.0.0.1:{port}", "--telemetry=disable", "--debug-addr=-", "--log-level=error"),
            *([*setup, f"--setup-password={password}"] if user else []),
        ],
        folder,
        server.answers,
    )
    return server


# -- both ------------------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class Stores:
    """Where a service of the tests keeps its records and its artifacts."""

    name: str
    s3: S3Server | None = None
    mongo: MongoServer | None = None
    driver: Driver = "pymongo"

    @property
    def is_embedded(self) -> bool:
        """SQLite and a folder: no server takes part."""
        return self.s3 is None and self.mongo is None

    @contextmanager
    def fresh(self) -> Iterator[dict[str, str]]:
        """The settings of a service with stores of its own, which are dropped in the end."""
        with ExitStack() as stack:
            artifacts = stack.enter_context(self.s3.fresh()) if self.s3 else {}
            records = stack.enter_context(self.mongo.fresh(self.driver)) if self.mongo else {}
            yield artifacts | records


# -- somebody's own -----------------------------------------------------------------------------------------------
GIVEN = {name: value for name, value in os.environ.items() if name.startswith(("S3_", "MONGO_")) and value}
"""What the environment of the tests says of servers, read before the plugin hides it from the tests."""


def external_s3() -> S3Server | None:
    """The server that S3_ENDPOINT, S3_ACCESS_KEY and S3_SECRET_KEY (and S3_REGION) name."""
    if "S3_ENDPOINT" not in GIVEN:
        return None
    keys = (GIVEN.get("S3_ACCESS_KEY", ACCESS_KEY), GIVEN.get("S3_SECRET_KEY", SECRET_KEY))
    return S3Server("s3-external", GIVEN["S3_ENDPOINT"], *keys, GIVEN.get("S3_REGION", "us-east-1"))


def external_mongo() -> MongoServer | None:
    """The server that MONGO_URL names."""
    return MongoServer("mongo-external", GIVEN["MONGO_URL"]) if "MONGO_URL" in GIVEN else None
