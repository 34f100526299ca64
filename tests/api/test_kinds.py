"""Every kind as the API shows it: route, schema, example, table; and the service's own figures."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import re
import shutil
from typing import Any, get_type_hints

import pytest
from fastapi import FastAPI

from app.config import Settings
from app.jobs.registry import Registry
from app.main import create_app
from app.schemas.kind import Kind
from tests.harness import Service

REGISTRY = Registry(["tests.kinds"])
OWN = Registry()
TENSORRT = shutil.which("trtexec") is not None or importlib.util.find_spec("tensorrt") is not None
every_kind = pytest.mark.parametrize("kind", list(REGISTRY.values()), ids=list(REGISTRY))


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    app: FastAPI = create_app(Settings(kind_packages=("tests.kinds",), api_keys=""))
    return app.openapi()


def test_the_issue_s_kinds_are_there() -> None:
    assert set(OWN) >= {"pt_to_onnx_fp32", "pt_to_onnx_fp16", "check_model_stats"}
    assert list(REGISTRY) == sorted(REGISTRY)


# -- one kind -----------------------------------------------------------------------------------------------------
@every_kind
def test_a_kind_has_a_handler_with_its_own_types(kind: Kind) -> None:
    handler = importlib.import_module(kind.handler)
    hints = get_type_hints(handler.run)
    assert list(inspect.signature(handler.run).parameters) == ["parameters", "context"]
    assert hints["parameters"] is kind.parameters
    assert hints["return"] is kind.metrics
    assert hints["context"].__name__ == "JobContext"


@every_kind
def test_a_kind_s_example_validates_and_has_a_word(kind: Kind) -> None:
    assert set(kind.example) == {"pid", "parameters"}
    parameters = kind.parameters.model_validate(kind.example["parameters"])
    assert parameters.kind == kind.word
    assert kind.parameters.model_validate(parameters.model_dump(mode="json")) == parameters, "as a record gives them"
    assert kind.slot(parameters).device in {"cpu", "light", "gpu", "dla0", "dla1"}
    assert kind.parameters.__doc__
    assert "\\" not in kind.parameters.__doc__
    assert kind.summary
    kind.output_name(parameters, "20250810-143012-nogit")


@every_kind
def test_a_kind_s_route_has_its_own_schema_and_example(kind: Kind, document: dict[str, Any]) -> None:
    """Routes made in a loop can all silently get the last kind's schema."""
    operation = document["paths"][f"/optimizing/{kind.action}"]["post"]
    content = operation["requestBody"]["content"]["application/json"]
    name = "".join(part.capitalize() for part in kind.action.split("_")) + "Request"
    assert content["schema"] == {"$ref": f"#/components/schemas/{name}"}
    parameters = document["components"]["schemas"][name]["properties"]["parameters"]
    assert parameters == {"$ref": f"#/components/schemas/{kind.parameters.__name__}"}
    schema = document["components"]["schemas"][kind.parameters.__name__]
    assert schema["properties"]["kind"]["const"] == kind.word
    assert set(schema["properties"]) == set(kind.parameters.model_fields)
    assert content["examples"][kind.action]["value"] == dict(kind.example)
    assert operation["operationId"] == f"submit_{kind.action}"
    assert operation["description"] == inspect.cleandoc(kind.parameters.__doc__ or "")


@every_kind
def test_a_kind_is_in_the_table_of_the_documents_first_page(kind: Kind, document: dict[str, Any]) -> None:
    row = f"| `POST /optimizing/{kind.action}` | `{kind.word}` | {kind.summary} |"
    assert row in document["info"]["description"].splitlines()


@every_kind
def test_a_kind_is_listed_with_its_needs(kind: Kind, service: Service) -> None:
    (listed,) = [one for one in service.client.get("/optimizing/kinds").json()["kinds"] if one["action"] == kind.action]
    assert listed["kind"] == kind.word
    assert listed["route"] == f"/optimizing/{kind.action}"
    assert listed["example"] == dict(kind.example)
    assert listed["parameters_schema"] == kind.parameters.model_json_schema()
    assert listed["metrics_schema"] == kind.metrics.model_json_schema()
    assert set(listed["needs"]) == set(kind.needs)
    lacking = kind.action == "absent" or ("trtexec or tensorrt" in kind.needs and not TENSORRT)
    assert listed["available"] != lacking
    assert (None in listed["needs"].values()) == lacking


@every_kind
def test_another_kind_s_word_is_refused(kind: Kind, service: Service, pid: str) -> None:
    parameters = {**kind.example["parameters"], "kind": "another_kind"}
    answer = service.client.post(f"/optimizing/{kind.action}", json={"pid": pid, "parameters": parameters})
    assert answer.status_code == 422
    assert [fault["field"] for fault in answer.json()["errors"]] == ["parameters.kind"]


def test_the_route_decides_and_the_word_must_agree(service: Service, pid: str) -> None:
    body = {"pid": pid, "parameters": {"kind": "check_model_stats", "input_path": "a/best.pt"}}
    assert service.client.post("/optimizing/pt_to_onnx_fp32", json=body).status_code == 422
    body["parameters"] = {"kind": "pt_to_onnx", "input_path": "a/best.pt"}
    for action in ("pt_to_onnx_fp32", "pt_to_onnx_fp16"):
        answer = service.client.post(f"/optimizing/{action}", json=body)
        assert answer.status_code == 202
        assert answer.json()["action"] == action
        assert answer.json()["details"] == {"kind": "pt_to_onnx"}


# -- validation ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("change", "field", "meant"),
    [
        ({"input_pth": "x"}, "parameters.input_pth", "input_path"),
        ({"Input_Size": [640, 640]}, "parameters.Input_Size", "input_size"),
        ({"batchsize": 2}, "parameters.batchsize", "batch_size"),
        ({"quite_another_thing": 1}, "parameters.quite_another_thing", None),
        ({"data": {"images": "a/b", "smaple": 3}}, "parameters.data.smaple", "sample"),
    ],
)
def test_an_unknown_parameter_is_refused_with_the_nearest_known(
    service: Service, pid: str, change: dict[str, Any], field: str, meant: str | None
) -> None:
    answer = service.post("pt_to_onnx_fp32", pid, {"kind": "pt_to_onnx", "input_path": "a/best.pt", **change})
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert fault["field"] == field
    assert fault.get("did_you_mean") == meant
    assert "unknown field" in fault["message"]


def test_an_unknown_field_of_the_envelope_is_refused(service: Service, pid: str) -> None:
    answer = service.post("nap", pid, {}, callback="http://receiver.test")
    assert answer.status_code == 422
    (fault,) = answer.json()["errors"]
    assert (fault["field"], fault["did_you_mean"]) == ("callback", "callback_url")
    for name in ("uid", "oid", "action", "status"):
        body = {"pid": pid, "parameters": {"kind": "nap"}, name: "0001"}
        assert service.client.post("/optimizing/nap", json=body).status_code == 422


@pytest.mark.parametrize(
    "change",
    [
        {"input_size": [640]},
        {"input_size": [640, 640, 3]},
        {"input_size": [0, 640]},
        {"input_size": [31, 640]},
        {"input_size": [640, 8193]},
        {"input_size": 640},
        {"input_size": "640,640"},
        {"input_size": [640.5, 640]},
        {"batch_size": 0},
        {"batch_size": -1},
        {"batch_size": 1.5},
        {"batch_size": 10**30},
        {"channels": 0},
        {"opset": 3},
        {"opset": 99},
        {"dynamic": "perhaps"},
        {"output_path": "best.pt"},
        {"output_path": ""},
        {"output_path": ".onnx"},
        {"output_path": ".hidden.onnx"},
        {"output_path": 5},
        {"input_path": ""},
        {"input_path": None},
        {"input_path": "a/best.onnx"},
        {"input_path": "a/best"},
        {"data": {"images": ""}},
        {"data": {"images": "a/b", "sample": 0}},
        {"data": "a/b"},
    ],
)
def test_values_out_of_bounds_are_refused(service: Service, pid: str, change: dict[str, Any]) -> None:
    answer = service.post("pt_to_onnx_fp32", pid, {"kind": "pt_to_onnx", "input_path": "a/best.pt", **change})
    assert answer.status_code == 422, answer.text
    (name,) = change
    assert all(fault["field"].startswith(f"parameters.{name}") for fault in answer.json()["errors"])
    assert service.client.get("/optimizing/jobs", params={"pid": pid}).json()["jobs"] == []


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "P",
        "0001",
        "p0001",
        "P0001 ",
        "P00O1",
        "P" + "1" * 19,
        "P\u0661\u0662",  # Arabic digits, which `\d` would take
        "P0001\n",
        "P-1",
        1,
        None,
        ["P1"],
        "O1",
    ],
)
def test_a_pid_is_p_and_ascii_digits(service: Service, wrong: object) -> None:
    answer = service.client.post("/optimizing/nap", json={"pid": wrong, "parameters": {"kind": "nap"}})
    assert answer.status_code == 422
    assert [fault["field"] for fault in answer.json()["errors"]] == ["pid"]


def test_a_kind_whose_library_is_missing_is_refused_unless_it_may_wait(service: Service, pid: str) -> None:
    answer = service.post("absent", pid, {})
    assert answer.status_code == 409
    assert answer.json()["code"] == "MACHINE_LACKS_LIBRARY"
    assert "a_library_that_nobody_has" in answer.json()["received"]
    path = service.submit("absent", pid, {}, queue=True)
    service.run("nap", pid, {"seconds": 0})
    assert service.job(path)["status"] == "queued"
    assert service.client.post(f"{path}/cancel").json()["status"] == "cancelled"


# -- the service itself -------------------------------------------------------------------------------------------
def test_it_lives_and_is_ready(service: Service) -> None:
    for path in ("/healthz", "/readyz"):
        answer = service.client.get(path)
        assert (answer.status_code, answer.json()["status"]) == (200, "ok")


def test_figures_for_prometheus(service: Service, pid: str) -> None:
    service.run("nap", pid, {"seconds": 0})
    service.run("fail", pid, {})
    text = service.client.get("/metrics").text
    names = set(re.findall(r"^# TYPE (\S+) ", text, re.MULTILINE))
    assert names >= {
        "optimizing_jobs_queued",
        "optimizing_jobs_running",
        "optimizing_job_wait_seconds",
        "optimizing_job_run_seconds",
        "optimizing_jobs_finished_total",
        "optimizing_jobs_cached_total",
        "optimizing_children_cold_total",
        "optimizing_callback_deliveries_total",
    }
    assert re.search(
        r'^optimizing_jobs_finished_total\{action="fail",code="TOY_REFUSED",outcome="failed"\} [1-9]', text, re.M
    )
    assert re.search(r'^optimizing_job_wait_seconds_count\{action="nap"\} [1-9]', text, re.MULTILINE)
    assert re.search(r'^optimizing_jobs_queued\{slot="cpu"\} ', text, re.MULTILINE)
    assert re.search(r"^optimizing_children_cold_total 0", text, re.MULTILINE)
    assert pid not in text


def test_the_document_declares_webhooks_errors_and_security(document: dict[str, Any]) -> None:
    assert set(document["webhooks"]) == {"job.completed", "job.failed", "job.cancelled"}
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            assert operation["summary"], (method, path)
            if path.startswith("/optimizing"):
                assert {"401", "500", "503"} <= set(operation["responses"]), (method, path)
                assert operation["security"], (method, path)
            for status, response in operation["responses"].items():
                if int(status) >= 400:
                    problem = response["content"]["application/problem+json"]["schema"]
                    assert problem == {"$ref": "#/components/schemas/Problem"}, (method, path, status)
                    assert set(response["content"]) == {"application/problem+json"}, (method, path, status)
    names = [one["operationId"] for ops in document["paths"].values() for one in ops.values()]
    assert len(set(names)) == len(names)
