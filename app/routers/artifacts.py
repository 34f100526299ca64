"""Files in and out: uploads, and the artifacts of jobs; both stream."""

from __future__ import annotations

import re
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, Header, Path, Query, Request, Response
from fastapi.responses import StreamingResponse

from app.errors import (
    InvalidRequest,
    MalformedRequest,
    NotFound,
    RangeNotSatisfiable,
    StoreFull,
    TooLarge,
    UnsupportedMedia,
)
from app.jobs.service import Jobs
from app.routers.deps import JobsDep, RefDep, UidDep
from app.routers.problems import declared
from app.routers.views import job_path
from app.schemas.common import FileName, Pid, check_key
from app.schemas.job import ArtifactList, ArtifactView, UploadView
from app.storage.artifacts import disposition

router = APIRouter(prefix="/optimizing", tags=["artifacts"])

_BINARY = {"schema": {"type": "string", "format": "binary"}}
_LATEST = r"^latest_(detection|classification)\.onnx$"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")


@router.post(
    "/uploads",
    status_code=201,
    summary="Store a file; the key that comes back is usable as `input_path`",
    responses=declared(InvalidRequest, MalformedRequest, UnsupportedMedia, TooLarge, StoreFull),
    openapi_extra={"requestBody": {"required": True, "content": {"application/octet-stream": _BINARY}}},
)
async def upload(
    request: Request,
    uid: UidDep,
    use: JobsDep,
    pid: Annotated[Pid, Query()],
    name: Annotated[FileName, Query(description="The file's name, e.g. best.pt", examples=["best.pt"])],
    response: Response,
) -> UploadView:
    if request.headers.get("content-type", "").lower().startswith("multipart/"):
        raise UnsupportedMedia(
            "an upload is the file itself, not a form that holds it",
            expected="the raw bytes as the body, `pid` and `name` in the query",
            received=request.headers["content-type"][:100],
            hint="curl --data-binary @best.pt '.../optimizing/uploads?pid=P0001&name=best.pt'",
        )
    announced = request.headers.get("content-length", "")
    limit = use.settings.upload_max_mib * 1024 * 1024
    if announced.isdigit() and int(announced) > limit:
        raise TooLarge(
            "the upload is larger than this service takes",
            expected=f"at most {limit} bytes (UPLOAD_MAX_MIB)",
            received=f"{announced} bytes",
        )
    ref, info = await use.upload(uid, pid, name, request.stream())
    response.headers["Location"] = f"/optimizing/jobs/{ref.pid}/{ref.oid}/artifacts/{quote(name)}"
    return UploadView(
        uid=uid, pid=pid, oid=ref.oid, name=name, key=info.key, size_bytes=info.size_bytes, sha256=info.sha256 or ""
    )


@router.get(
    "/jobs/{pid}/{oid}/artifacts",
    summary="The files of a job or an upload",
    responses=declared(InvalidRequest, NotFound),
)
async def list_artifacts(uid: UidDep, use: JobsDep, ref: RefDep) -> ArtifactList:
    prefix, found = await use.artifact_list(uid, ref)
    return ArtifactList(
        artifacts_path=prefix,
        artifacts=[
            ArtifactView(name=info.key[len(prefix) :], key=info.key, size_bytes=info.size_bytes, sha256=info.sha256)
            for info in found
        ],
    )


@router.get(
    "/jobs/{pid}/{oid}/artifacts/{name:path}",
    response_class=StreamingResponse,
    summary="One file, streamed; ranges and conditions are honoured",
    responses={
        200: {"content": {"application/octet-stream": _BINARY}},
        206: {"description": "The part asked for", "content": {"application/octet-stream": _BINARY}},
        304: {"description": "The file is the one that the caller has"},
        307: {
            "description": "The file lies with the artifact store itself, at Location, for 15 minutes",
            "headers": {"Location": {"schema": {"type": "string", "format": "uri"}}},
        },
        **declared(InvalidRequest, NotFound, RangeNotSatisfiable),
    },
)
async def download(
    uid: UidDep,
    use: JobsDep,
    ref: RefDep,
    name: Annotated[str, Path(min_length=1, max_length=1024)],
    range_: Annotated[str | None, Header(alias="Range")] = None,
    if_range: Annotated[str | None, Header()] = None,
    if_none_match: Annotated[str | None, Header()] = None,
) -> Response:
    try:
        check_key(name)
    except ValueError as error:
        raise InvalidRequest("that is no artifact's name", received=name[:100], hint=str(error)) from error
    key = await use.artifact_prefix(uid, ref) + name
    link = use.artifacts.link(key, name)
    info = await use.artifacts.stat(key, digest=link is None)  # no file passes through here for its digest only
    etag = f'"{info.sha256}"' if info.sha256 else None
    headers = {"Accept-Ranges": "bytes", "Content-Disposition": disposition(name)} | ({"ETag": etag} if etag else {})
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if {"*", etag} & known:
        return Response(status_code=304, headers=headers)
    if link is not None:  # ranges are the store's to answer then
        return Response(status_code=307, headers=headers | {"Location": link, "Cache-Control": "no-store"})
    wanted = _range(range_, info.size_bytes) if range_ and if_range in {None, etag} else None
    return _stream(use, key, info.size_bytes, wanted, headers)


@router.get(
    "/projects/{pid}/{name}",
    status_code=307,
    response_class=Response,
    summary="The newest export of a project's `detection_best.pt` or `classification_best.pt`",
    responses={
        307: {
            "description": "It is at Location, under the name of its version",
            "headers": {"Location": {"schema": {"type": "string", "format": "uri-reference"}}},
        },
        **declared(InvalidRequest, NotFound),
    },
)
async def latest(
    uid: UidDep,
    use: JobsDep,
    pid: Pid,
    name: Annotated[str, Path(pattern=_LATEST, examples=["latest_detection.onnx"])],
) -> Response:
    ref, file = await use.latest(uid, pid, name)
    headers = {"Location": f"{job_path(ref)}/artifacts/{quote(file)}", "Cache-Control": "no-store"}
    return Response(status_code=307, headers=headers)


def _stream(
    use: Jobs, key: str, size: int, wanted: tuple[int, int] | None, headers: dict[str, str]
) -> StreamingResponse:
    start, end = wanted or (0, size)
    headers["Content-Length"] = str(end - start)
    if wanted:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
    return StreamingResponse(
        use.artifacts.read(key, start, end),
        status_code=206 if wanted else 200,
        headers=headers,
        media_type="application/octet-stream",
    )


def _range(text: str, size: int) -> tuple[int, int] | None:
    """The first and the byte after the last of a single range (RFC 9110, 14.2); None for forms that may be ignored."""
    match = _RANGE.fullmatch(text.strip())
    first, last = match.groups() if match else ("", "")
    if not (first or last) or (first and last and int(last) < int(first)):
        return None
    start = int(first) if first else max(size - int(last), 0)
    end = min(int(last) + 1, size) if first and last else size
    if start >= size or (not first and int(last) == 0):
        raise RangeNotSatisfiable(
            "the file does not have that range",
            expected=f"a range within {size} bytes",
            received=text,
            headers={"Content-Range": f"bytes */{size}"},
        )
    return start, end
