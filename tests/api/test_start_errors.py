"""A service whose stores cannot be used does not start; it says in a line what to mend, and no secret."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.harness import STOP_SEC, Service, free_port
from tests.services.servers import MongoServer, S3Server

SECRET = "a-secret-that-nobody-may-read"
NOBODY = "127.0.0.1:1"

MakeService = Callable[..., Service]


def refused(make_service: MakeService, code: int, **environment: str) -> str:
    """The last words of a service that does not start."""
    service = make_service(start=False, **environment)
    service.mistakes_expected = True
    service.start(wait=False)
    assert service.process is not None
    assert service.process.wait(STOP_SEC) == code
    text = service.text()
    assert "Traceback" not in text
    assert SECRET not in text
    assert not service.workspace.exists() or not list(service.workspace.glob("jobs/*"))
    return text


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"ARTIFACT_STORE": "minio"}, "ARTIFACT_STORE=minio needs S3_ENDPOINT and S3_ACCESS_KEY and S3_SECRET_KEY"),
        (
            {"ARTIFACT_STORE": "minio", "S3_ENDPOINT": "http://127.0.0.1:1", "S3_SECRET_KEY": SECRET},
            "ARTIFACT_STORE=minio needs S3_ACCESS_KEY; set it",
        ),
        ({"RECORD_STORE": "mongo"}, "RECORD_STORE=mongo needs MONGO_URL"),
        ({"RECORD_STORE": "mongo", "MONGO_URL_FILE": "/nowhere"}, "MONGO_URL_FILE names /nowhere, which is not a file"),
        ({"S3_ENDPOINT": "minio:9000"}, "S3_ENDPOINT: expected http://host:port"),
        ({"S3_ENDPOINT": f"http://me:{SECRET}@host"}, "without a path or credentials"),
        ({"ARTIFACT_STORE": "s3"}, "artifact_store"),
        ({"MONGO_DATABASE": "no/slash"}, "mongo_database"),
    ],
)
def test_settings_that_do_not_fit_together(make_service: MakeService, environment: dict[str, str], words: str) -> None:
    assert words in refused(make_service, 2, **environment)


@pytest.mark.parametrize("driver", ["pymongo", pytest.param("motor", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("url", "words"),
    [
        (f"mongodb://me:{SECRET}@{NOBODY}/", "the record store does not answer"),
        (f"mongo://me:{SECRET}@{NOBODY}/", "MONGO_URL cannot be understood"),
        (f"mongodb://me:{SECRET}@x@{NOBODY}/", "MONGO_URL cannot be understood"),
    ],
)
def test_a_record_store_that_cannot_be_reached(make_service: MakeService, driver: str, url: str, words: str) -> None:
    text = refused(make_service, 3, RECORD_STORE="mongo", MONGO_URL=url, MONGO_DRIVER=driver)
    assert f"optimizing-api cannot start: {words}" in text
    assert "MONGO_URL" in text


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["pymongo", "motor"])
@pytest.mark.parametrize(("user", "words"), [(f"tester:{SECRET}@", "refuses the user"), ("", "may not do this")])
def test_a_record_store_that_does_not_let_us_in(
    make_service: MakeService, make_ferretdb: Callable[..., MongoServer], driver: str, user: str, words: str
) -> None:
    server = make_ferretdb(user="tester", password="right-password")
    url = server.url.replace("tester:right-password@", user)
    text = refused(make_service, 3, RECORD_STORE="mongo", MONGO_URL=url, MONGO_DRIVER=driver)
    assert words in text
    assert "MONGO_URL" in text
    make_service("let in", RECORD_STORE="mongo", MONGO_URL=server.url, MONGO_DRIVER=driver)


def test_an_artifact_store_that_cannot_be_reached(make_service: MakeService) -> None:
    keys = {"S3_ACCESS_KEY": "me", "S3_SECRET_KEY": SECRET}
    endpoint = f"http://127.0.0.1:{free_port()}"
    text = refused(make_service, 3, ARTIFACT_STORE="minio", S3_ENDPOINT=endpoint, **keys)
    assert "optimizing-api cannot start: " in text
    assert "S3_ENDPOINT" in text


@pytest.mark.slow
@pytest.mark.parametrize("server", ["minio_server", "seaweedfs_server"])
@pytest.mark.parametrize(("name", "value"), [("S3_SECRET_KEY", SECRET), ("S3_ACCESS_KEY", "somebody")])
def test_an_artifact_store_that_does_not_let_us_in(
    make_service: MakeService, request: pytest.FixtureRequest, server: str, name: str, value: str
) -> None:
    found: S3Server = request.getfixturevalue(server)
    with found.fresh() as environment:
        text = refused(make_service, 3, **{**environment, name: value})
    assert "optimizing-api cannot start: " in text
    assert "S3_ACCESS_KEY" in text
