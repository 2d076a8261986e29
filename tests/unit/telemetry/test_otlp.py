"""Agents cannot say whose their spans are; the platform does. Protobuf and JSON, good and hostile."""

import gzip
import json
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue
from opentelemetry.proto.resource.v1.resource_pb2 import Resource
from opentelemetry.proto.trace.v1.trace_pb2 import ResourceSpans, ScopeSpans, Span

from nexus.core import errors
from nexus.telemetry import otlp, records, traces

OWNER = {"nexus.tenant": "default", "nexus.agent": "echo"}
FALLBACK = {"service.name": "echo"}


def protobuf(attributes: dict[str, str]) -> bytes:
    resource = Resource(attributes=[KeyValue(key=k, value=AnyValue(string_value=v)) for k, v in attributes.items()])
    span = Span(trace_id=b"t" * 16, span_id=b"s" * 8, name="process_input")
    request = ExportTraceServiceRequest(resource_spans=[ResourceSpans(resource=resource, scope_spans=[ScopeSpans(spans=[span])])])
    return bytes(request.SerializeToString())


def attributes_of(body: bytes) -> dict[str, str]:
    request = ExportTraceServiceRequest.FromString(body)
    assert request.resource_spans[0].scope_spans[0].spans[0].name == "process_input"
    found = request.resource_spans[0].resource.attributes
    assert len({one.key for one in found}) == len(found)
    return {one.key: one.value.string_value for one in found}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"service.name": "echo"}),
        ({"service.name": "unknown_service:python"}, {"service.name": "echo"}),
        ({"service.name": "mine", "x": "y"}, {"service.name": "mine", "x": "y"}),
        ({"nexus.tenant": "forged", "service.name": "mine"}, {"service.name": "mine"}),
    ],
)
def test_resources_are_marked_in_both_encodings(given: dict[str, str], expected: dict[str, str]) -> None:
    assert attributes_of(otlp.mark(protobuf(given), otlp.PROTOBUF, owner=OWNER, fallback=FALLBACK)) == {**OWNER, **expected}
    entry: dict[str, Any] = {"resource": {"attributes": [{"key": k, "value": {"stringValue": v}} for k, v in given.items()]}}
    entry["scopeSpans"] = [{"spans": [{"traceId": "ab" * 16, "name": "process_input"}]}]
    marked = json.loads(
        otlp.mark(
            json.dumps({"resourceSpans": [entry]}).encode(), "application/json; charset=utf-8", owner=OWNER, fallback=FALLBACK
        )
    )
    (resource_spans,) = marked["resourceSpans"]
    assert {one["key"]: one["value"]["stringValue"] for one in resource_spans["resource"]["attributes"]} == {**OWNER, **expected}
    assert resource_spans["scopeSpans"] == entry["scopeSpans"]


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"\xff\xff\xff", otlp.PROTOBUF), (b"{", otlp.JSON), (b"[]", otlp.JSON), (b'{"resourceSpans":[1]}', otlp.JSON),
        (b'{"resourceSpans":[{"resource":{"attributes":[1]}}]}', otlp.JSON), (b"{}", "text/plain"), (b"[" * 100_000, otlp.JSON),
        (b'{"resourceSpans":[{"resource":{"attributes":[{"key":["x"]}]}}]}', otlp.JSON),
        (b'{"resourceSpans":[{"resource":{"attributes":[{"key":"service.name","value":3}]}}]}', otlp.JSON),
    ],
)  # fmt: skip
def test_what_is_no_trace_request_is_refused(body: bytes, content_type: str) -> None:
    with pytest.raises(errors.Invalid) as caught:
        otlp.mark(body, content_type, owner=OWNER, fallback=FALLBACK)
    assert caught.value.code == "traces.invalid"


def test_gzip_is_unpacked_within_bounds() -> None:
    assert otlp.decode_body(gzip.compress(b"x"), "gzip") == b"x"
    with pytest.raises(errors.Invalid) as caught:
        otlp.decode_body(gzip.compress(b"\0" * (otlp.MAX_BYTES + 1)), "gzip")
    assert caught.value.code == "body.too_large"
    for body, encoding in ((b"nonsense", "gzip"), (gzip.compress(b"abc")[:-4], "gzip"), (b"x", "br")):
        with pytest.raises(errors.Invalid):
            otlp.decode_body(body, encoding)


def test_the_endpoint_follows_the_standard_variables() -> None:
    assert traces.parse_settings(endpoint=None, traces_endpoint=None, headers=None).endpoint is None
    both = traces.parse_settings(endpoint="http://c:4318/", traces_endpoint=None, headers="a=b, authorization=Bearer%20x,bad")
    assert (both.endpoint, both.headers) == ("http://c:4318/v1/traces", (("a", "b"), ("authorization", "Bearer x")))
    assert "Bearer" not in repr(both)
    assert traces.parse_settings(endpoint="http://c", traces_endpoint="https://d/x", headers="").endpoint == "https://d/x"
    with pytest.raises(ValueError, match="OTLP endpoint"):
        traces.parse_settings(endpoint="localhost:4318", traces_endpoint=None, headers=None)


GOOD = {
    "kind": "run", "id": "run_1", "tenant": "t", "agent": "a", "environment": "e", "deployment_id": "d", "version": "1",
    "instance_id": "i", "session_id": "s", "principal": "p", "mode": "sync", "outcome": "completed", "status": 200,
    "started_at": 1.5, "duration_s": 0.1, "bytes_in": 1, "bytes_out": 2, "trace_id": "",
}  # fmt: skip


def test_records_are_taken_whole_or_not_at_all() -> None:
    assert records.parse_record(GOOD) == GOOD
    assert records.parse_record({**GOOD, "code": "a\0b", "new": 1}) == {**GOOD, "code": "ab"}
    for broken in (
        None, [], {}, {**GOOD, "kind": "walk"}, {**GOOD, "status": "200"}, {**GOOD, "status": True},
        {**GOOD, "duration_s": float("nan")},
        {**GOOD, "bytes_in": 2**70}, {name: value for name, value in GOOD.items() if name != "agent"}, {**GOOD, "agent": None},
    ):  # fmt: skip
        assert records.parse_record(broken) is None
