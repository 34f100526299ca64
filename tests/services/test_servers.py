"""The servers that the other tests run on: they keep what they have taken, and nobody is left when the tests die."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from io import BytesIO
from pathlib import Path

import pytest

from tests.harness import ROOT, alive, eventually
from tests.services import servers
from tests.services.plugin import binary, started
from tests.services.servers import MongoServer, S3Server


def _put_and_read_after_a_kill(server: S3Server) -> None:
    content = b"content" * 100_000
    with server.client() as client:
        client.make_bucket("bucket")
        client.put_object("bucket", "모델.pt", BytesIO(content), len(content))
    server.kill()
    assert not server.answers()
    server.start()
    with server.client() as client:
        answer = client.get_object("bucket", "모델.pt")
        assert answer.read() == content
        answer.close()


def test_minio_keeps_files_over_a_kill(make_minio: Callable[[], S3Server]) -> None:
    _put_and_read_after_a_kill(make_minio())


@pytest.mark.slow
def test_seaweedfs_keeps_files_over_a_kill(tmp_path: Path) -> None:
    with ExitStack() as stack:
        _put_and_read_after_a_kill(started(servers.seaweedfs, "seaweedfs", tmp_path, stack))


@pytest.mark.slow
def test_ferretdb_keeps_documents_over_a_kill(make_ferretdb: Callable[[], MongoServer]) -> None:
    server = make_ferretdb()
    with server.client() as client:
        client["base"]["things"].insert_many({"_id": number} for number in range(100))
        server.kill()
        assert not server.answers()
        server.start()
        assert client["base"]["things"].count_documents({}) == 100


def test_two_of_one_kind_know_nothing_of_each_other(make_minio: Callable[[], S3Server]) -> None:
    one, other = make_minio(), make_minio()
    with one.client() as client:
        client.make_bucket("bucket")
    one.stop()
    with other.client() as client:
        assert not client.bucket_exists("bucket")


def test_what_a_test_was_given_is_dropped(minio_server: S3Server, ferretdb_server: MongoServer) -> None:
    with minio_server.fresh() as environment, minio_server.client() as client:
        bucket = environment["S3_BUCKET"]
        client.make_bucket(bucket)
        for name in ("a", "b/c", "b/d"):
            client.put_object(bucket, name, BytesIO(b"x"), 1)
    with minio_server.client() as client:
        assert not client.bucket_exists(bucket)
    with ferretdb_server.client() as mongo:
        with ferretdb_server.fresh("motor") as environment:
            mongo[environment["MONGO_DATABASE"]]["things"].insert_one({})
            assert environment["MONGO_DATABASE"] in mongo.list_database_names()
        assert environment["MONGO_DATABASE"] not in mongo.list_database_names()


START = """
import sys, time
from pathlib import Path
from tests.services import servers

server = servers.ferretdb(Path(sys.argv[1]), Path(sys.argv[2]))
server.start()
print(server.process.running.pid, flush=True)
time.sleep(60)
"""


def test_a_server_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", START, str(binary("ferretdb")), str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert alive(pid)
        process.kill()
    eventually(lambda: not alive(pid), 5, what="the end of the server")


def test_one_that_does_not_start_is_told_with_its_log(tmp_path: Path) -> None:
    server = servers.ferretdb(Path("/bin/sh"), tmp_path)  # which knows none of these options
    began = time.monotonic()
    with closing(server), pytest.raises(AssertionError, match=r"/bin/sh ended:\n.*option"):
        server.start()
    assert time.monotonic() - began < 5


@pytest.mark.parametrize(("ci", "outcome"), [("true", pytest.fail.Exception), ("", pytest.skip.Exception)])
def test_a_server_that_is_not_installed_fails_in_ci_and_skips_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ci: str, outcome: type[BaseException]
) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome, match="make services"):
        binary("minio", tmp_path)
