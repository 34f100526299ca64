"""Files in a service's artifact store, past the service: as the platform puts them there, and to see what is left."""

from __future__ import annotations

from io import BytesIO

from tests.harness import Service, tree
from tests.services.servers import S3Server


def _s3(service: Service) -> tuple[S3Server, str] | None:
    """The server and the bucket, if that is where the artifacts are; else they are in a folder."""
    given = service.environment
    if given.get("ARTIFACT_STORE", "local") == "local":
        return None
    keys = (given["S3_ACCESS_KEY"], given["S3_SECRET_KEY"])
    return S3Server("by hand", given["S3_ENDPOINT"], *keys, given["S3_REGION"]), given["S3_BUCKET"]


def put(service: Service, key: str, content: bytes) -> None:
    place = _s3(service)
    if place is None:
        path = service.workspace / "store" / key
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return
    server, bucket = place
    with server.client() as client:
        client.put_object(bucket, key, BytesIO(content), len(content))


def read(service: Service, key: str) -> bytes:
    place = _s3(service)
    if place is None:
        return (service.workspace / "store" / key).read_bytes()
    server, bucket = place
    with server.client() as client:
        return bytes(client.get_object(bucket, key).read())


def remove(service: Service, key: str) -> None:
    place = _s3(service)
    if place is None:
        (service.workspace / "store" / key).unlink()
        return
    server, bucket = place
    with server.client() as client:
        client.remove_object(bucket, key)


def everything(service: Service) -> dict[str, str]:
    """Every file with what it is, those that are just being written too: to see whether something was left."""
    here = tree(service.workspace / "store")
    place = _s3(service)
    if place is None:
        return here
    server, bucket = place
    with server.client() as client:
        objects = {str(one.object_name): str(one.etag) for one in client.list_objects(bucket, recursive=True)}
        begun = client._list_multipart_uploads(bucket).uploads
    return here | objects | {f"{one.object_name} {one.upload_id}": "begun" for one in begun}
