"""Providers' own ways of being asked: where a dialect lives, Azure's deployments and versions, Amazon's signatures. Pure.

What is needed for it comes with the model's entry (`options.auth`), resolved by control; a plain key is one of its `headers`.
Source of the signature: AWS Signature Version 4, https://docs.aws.amazon.com/IAM/latest/UserGuide/create-signed-request.html
"""

import hashlib
import hmac
import time
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from nexus.gateway import http1, model_translation
from nexus.gateway.model_call import ModelCall, Target

_ALGORITHM = "AWS4-HMAC-SHA256"


def render_target(call: ModelCall) -> bytes:
    """The request target at the provider: its prefix for this dialect, then what follows `/v1`."""
    target, rest = call.target, call.call.head.target[len(b"/v1") :]
    if target is None:
        return rest
    if target.translated:
        return b"/v1" + rest
    auth = auth_of(target)
    if auth.get("deployments"):
        path, mark, query = rest.partition(b"?")
        model = quote(target.upstream_model, safe="").encode("ascii")
        rest = b"/deployments/%b%b%b%b" % (model, path, mark, query)
    prefixes = auth.get("prefixes")
    prefix = prefixes.get(call.dialect, target.prefix) if isinstance(prefixes, Mapping) else target.prefix
    if version := auth.get("api_version"):
        rest += (b"&" if b"?" in rest else b"?") + b"api-version=" + quote(str(version), safe="").encode("ascii")
    return str(prefix).encode("ascii") + rest


def sign(call: ModelCall, body: bytes, now: float) -> None:
    """Set `call.signed` to the headers that this attempt needs besides its entry's."""
    call.signed = []
    target = call.target
    if target is not None and target.translated:
        call.signed = [model_translation.render_upstream(target)]
        return
    if target is None or "sigv4" not in (auth := auth_of(target)):
        return
    call.signed = sign_v4(auth["sigv4"], host=target.host, target=render_target(call).decode("ascii"), body=body, now=now)


def auth_of(target: Target) -> Mapping[str, Any]:
    found = (target.entry.get("options") or {}).get("auth")
    return found if isinstance(found, Mapping) else {}


def sign_v4(credential: Mapping[str, Any], *, host: str, target: str, body: bytes, now: float) -> list[http1.Header]:
    """The headers of a signed POST. `credential`: `access_key`, `secret_key`, `session_token`?, `region`, `service`."""
    moment = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime(now))
    scope = f"{moment[:8]}/{credential['region']}/{credential['service']}/aws4_request"
    digest = hashlib.sha256(body).hexdigest()
    signed = {"host": host, "x-amz-content-sha256": digest, "x-amz-date": moment}
    if token := credential.get("session_token"):
        signed["x-amz-security-token"] = str(token)
    names = ";".join(sorted(signed))
    path, _, query = target.partition("?")
    request = "\n".join(
        (
            "POST",
            quote(path, safe="/~"),
            _canonical_query(query),
            *(f"{name}:{signed[name]}" for name in sorted(signed)),
            "",
            names,
            digest,
        )
    )
    text = "\n".join((_ALGORITHM, moment, scope, hashlib.sha256(request.encode()).hexdigest()))
    key = ("AWS4" + str(credential["secret_key"])).encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    del signed["host"]
    signed["authorization"] = (
        f"{_ALGORITHM} Credential={credential['access_key']}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return [(name.encode("ascii"), value.encode("latin-1")) for name, value in signed.items()]


def _canonical_query(query: str) -> str:
    """Sorted by name and value, each as it is encoded in the target already."""
    return "&".join(sorted(part if "=" in part else part + "=" for part in query.split("&"))) if query else ""
