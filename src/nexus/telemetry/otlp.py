"""OTLP/HTTP trace requests, protobuf or JSON: whose spans these are is written into every resource. Pure.

Source: OpenTelemetry Protocol 1.x; in its JSON trace ids are hexadecimal, so JSON stays JSON and is not sent through protobuf.
"""

import gzip
import io
import json
from collections.abc import Mapping
from typing import Any

from nexus.core import errors

JSON, PROTOBUF = "application/json", "application/x-protobuf"
MAX_BYTES = 8 * 1024 * 1024


def decode_body(body: bytes, content_encoding: str) -> bytes:
    """The body unpacked, at most `MAX_BYTES`. Raises `Invalid`."""
    if content_encoding in ("", "identity"):
        return body
    if content_encoding != "gzip":
        raise errors.Invalid(f"traces in content encoding {content_encoding[:40]!r} are not taken", code="traces.invalid")
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as stream:
            plain = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError) as error:
        raise errors.Invalid("these traces are not gzip", code="traces.invalid", cause=str(error)) from None
    if len(plain) > MAX_BYTES:
        raise errors.Invalid(f"these traces are larger than {MAX_BYTES} bytes", code="body.too_large")
    return plain


def mark(body: bytes, content_type: str, *, owner: Mapping[str, str], fallback: Mapping[str, str]) -> bytes:
    """The request with `owner`'s attributes set in every resource, and those of `fallback` where there is none of that name."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind == JSON:
        return _mark_json(body, owner, fallback)
    if kind == PROTOBUF:
        return _mark_protobuf(body, owner, fallback)
    raise errors.Invalid(
        f"traces as {kind[:60]!r} are not taken", code="traces.invalid", cause=f"OTLP/HTTP is {PROTOBUF} or {JSON}"
    )


def _mark_json(body: bytes, owner: Mapping[str, str], fallback: Mapping[str, str]) -> bytes:
    try:
        request = json.loads(body)
        for entry in request.get("resourceSpans", []):
            resource = entry.setdefault("resource", {})
            kept = [one for one in resource.get("attributes", []) if one["key"] not in owner and not _is_placeholder_json(one)]
            names = {one["key"] for one in kept}
            added = {**owner, **{name: value for name, value in fallback.items() if name not in names}}
            resource["attributes"] = kept + [{"key": name, "value": {"stringValue": value}} for name, value in added.items()]
        return json.dumps(request, separators=(",", ":")).encode()
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError) as error:
        raise errors.Invalid(
            "these traces are not an OTLP trace request", code="traces.invalid", cause=type(error).__name__
        ) from None


def _mark_protobuf(body: bytes, owner: Mapping[str, str], fallback: Mapping[str, str]) -> bytes:
    # loaded when the first trace comes: most hosts export none
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
    from opentelemetry.proto.common.v1.common_pb2 import AnyValue, KeyValue

    request = ExportTraceServiceRequest()
    try:
        request.ParseFromString(body)
    except DecodeError:
        raise errors.Invalid("these traces are not an OTLP trace request", code="traces.invalid") from None
    for entry in request.resource_spans:
        attributes = entry.resource.attributes
        kept = [one for one in attributes if one.key not in owner and not _is_placeholder(one.key, one.value.string_value)]
        names = {one.key for one in kept}
        added = {**owner, **{name: value for name, value in fallback.items() if name not in names}}
        kept += [KeyValue(key=name, value=AnyValue(string_value=value)) for name, value in added.items()]
        copies = [KeyValue.FromString(one.SerializeToString()) for one in kept]
        del attributes[:]
        attributes.extend(copies)
    return bytes(request.SerializeToString())


def _is_placeholder_json(attribute: Mapping[str, Any]) -> bool:
    return _is_placeholder(attribute["key"], str(attribute.get("value", {}).get("stringValue", "")))


def _is_placeholder(name: str, value: str) -> bool:
    """SDKs fill in `unknown_service` when nobody named it; the agent's name says more."""
    return name == "service.name" and (not value or value.startswith("unknown_service"))
