"""Configurations for running behind nginx, Envoy or HAProxy: TLS and HTTP/2 at the edge, streams that are not held back.

Pure: an `Edge` in, text out. Every value is checked against a narrow grammar first, so nothing in it can end a line or a string.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

from nexus.core import errors

_NAME = re.compile(r"(?:\*\.)?[A-Za-z0-9](?:[A-Za-z0-9-]{0,62})(?:\.[A-Za-z0-9-]{1,63}){0,10}")
_HOST = re.compile(r"[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:]{2,45}\]")
_PATH = re.compile(r"/[A-Za-z0-9._/+@-]{1,1000}")
_LONGEST_RUN_S = 8 * 3600
_LARGEST_BODY = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class Edge:
    """`upstreams` are gateways as (host, port). Without `certificate` the edge speaks plain HTTP."""

    names: tuple[str, ...]
    upstreams: tuple[tuple[str, int], ...]
    port: int
    certificate: Path | None = None
    key: Path | None = None


def parse_edge(
    *, names: tuple[str, ...], upstreams: tuple[str, ...], port: int | None, certificate: str | None, key: str | None
) -> Edge:
    """A checked `Edge`, or `Invalid` (`edge.invalid`) naming the value that cannot be used."""
    if not names:
        raise _invalid("there is no server name", "pass --server-name with the host name that clients use")
    for name in names:
        if _NAME.fullmatch(name) is None:
            raise _invalid(f"{name[:80]!r} is not a host name", "write it as agents.example.com or *.example.com")
    if (certificate is None) != (key is None):
        raise _invalid("a certificate needs its key", "pass both --certificate and --key")
    chosen = port if port is not None else (443 if certificate is not None else 80)
    if not 0 < chosen < 65536:
        raise _invalid(f"{chosen} is not a port", "a port is 1 to 65535")
    return Edge(
        names=tuple(name.lower() for name in names),
        upstreams=tuple(_upstream(text) for text in upstreams),
        port=chosen,
        certificate=_path(certificate),
        key=_path(key),
    )


def _upstream(text: str) -> tuple[str, int]:
    host, _, port = text.rpartition(":")
    if _HOST.fullmatch(host) is None or not port.isdigit() or not 0 < int(port) < 65536:
        raise _invalid(f"{text[:80]!r} is not a gateway's address", "write it as 127.0.0.1:8700")
    return host, int(port)


def _path(text: str | None) -> Path | None:
    if text is None:
        return None
    if _PATH.fullmatch(text) is None:
        raise _invalid(f"{text[:80]!r} is not a path that can be written", "use an absolute path of letters, digits and ._/+@-")
    return Path(text)


def _invalid(message: str, next_step: str) -> errors.Invalid:
    return errors.Invalid(message, code="edge.invalid", next_step=next_step)


def _heading(edge: Edge, mark: str) -> str:
    return (
        f"{mark} Nexus behind this edge. The gateway must answer for these names; before `nexus up`:\n"
        f"{mark}   NEXUS_ALLOWED_HOSTS={','.join(edge.names)}\n"
    )


def render_nginx(edge: Edge) -> str:
    """For `/etc/nginx/conf.d/nexus.conf` (inside `http`). Nothing is buffered, nothing is sent twice."""
    servers = "\n".join(f"    server {host}:{port};" for host, port in edge.upstreams)
    listen = f"    listen {edge.port}" + (" ssl http2;" if edge.certificate else ";")
    tls = (
        f"    ssl_certificate {edge.certificate};\n    ssl_certificate_key {edge.key};\n"
        "    ssl_protocols TLSv1.2 TLSv1.3;\n    ssl_session_cache shared:nexus:10m;\n"
        if edge.certificate
        else ""
    )
    return f"""{_heading(edge, "#")}
upstream nexus {{
{servers}
    keepalive 128;
}}

map $http_upgrade $nexus_connection {{
    default upgrade;
    ''      '';
}}

server {{
{listen}
    server_name {" ".join(edge.names)};
{tls}
    client_max_body_size {_LARGEST_BODY // 1024 // 1024}m;
    client_body_timeout 60s;
    keepalive_timeout 60s;

    location / {{
        proxy_pass http://nexus;
        proxy_http_version 1.1;
        proxy_set_header Host $http_host;
        proxy_set_header Upgrade $http_upgrade;
        proxy_set_header Connection $nexus_connection;
        proxy_set_header X-Forwarded-For $remote_addr;
        proxy_set_header X-Forwarded-Proto $scheme;
        proxy_buffering off;
        proxy_request_buffering off;
        proxy_cache off;
        gzip off;
        proxy_connect_timeout 5s;
        proxy_read_timeout {_LONGEST_RUN_S}s;
        proxy_send_timeout {_LONGEST_RUN_S}s;
        proxy_next_upstream off;
    }}
}}
"""


def render_haproxy(edge: Edge) -> str:
    """A whole `haproxy.cfg`. `option http-no-delay` is what lets events through at once (227 ms a piece without it)."""
    servers = "\n".join(f"    server gateway{n} {host}:{port} check" for n, (host, port) in enumerate(edge.upstreams))
    bind = f"    bind :{edge.port}" + (f" ssl crt {edge.certificate} alpn h2,http/1.1" if edge.certificate else "")
    exact = " ".join(name for name in edge.names if name[0] != "*")
    ends = " ".join(name[1:] for name in edge.names if name[0] == "*")
    acl = "    acl ours req.hdr(host),field(1,:),lower "
    acls = "\n".join(([acl + exact] if exact else []) + ([f"{acl}-m end {ends}"] if ends else []))
    note = (
        f"# HAProxy reads the key from {edge.certificate}.key or from the certificate's own file.\n" if edge.certificate else ""
    )
    return f"""{_heading(edge, "#")}{note}
defaults
    mode http
    option http-no-delay
    option forwardfor
    option abortonclose
    retries 0
    timeout connect 5s
    timeout client {_LONGEST_RUN_S}s
    timeout server {_LONGEST_RUN_S}s
    timeout tunnel {_LONGEST_RUN_S}s
    timeout http-request 10s
    timeout http-keep-alive 60s

frontend nexus
{bind}
    http-request set-header X-Forwarded-Proto {"https" if edge.certificate else "http"}
{acls}
    http-request deny deny_status 421 unless ours
    default_backend gateways

backend gateways
    balance leastconn
    http-reuse always
    option httpchk
    http-check send meth GET uri /health ver HTTP/1.1 hdr Host localhost
    default-server inter 2s fall 2 rise 1
{servers}
"""


def render_envoy(edge: Edge) -> str:
    """A whole bootstrap for a file named `*.yaml` (it is JSON, which is YAML). No time limit cuts a run, nothing is retried."""
    name, kinds = "type.googleapis.com/envoy.extensions", "@type"
    manager = {
        kinds: f"{name}.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "nexus",
        "codec_type": "AUTO",
        "use_remote_address": True,
        "request_headers_timeout": "10s",
        "stream_idle_timeout": f"{_LONGEST_RUN_S}s",
        "normalize_path": False,
        "path_with_escaped_slashes_action": "REJECT_REQUEST",
        "upgrade_configs": [{"upgrade_type": "websocket"}],
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {kinds: f"{name}.filters.http.router.v3.Router"}}],
        "route_config": {
            "name": "nexus",
            "virtual_hosts": [
                {
                    "name": "nexus",
                    "domains": [text for name_ in edge.names for text in (name_, f"{name_}:{edge.port}")],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "gateways", "timeout": "0s"}}],
                }
            ],
        },
    }
    chain: dict[str, object] = {
        "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
    }  # fmt: skip
    if edge.certificate:
        chain["transport_socket"] = {
            "name": "envoy.transport_sockets.tls",
            "typed_config": {
                kinds: f"{name}.transport_sockets.tls.v3.DownstreamTlsContext",
                "common_tls_context": {
                    "alpn_protocols": ["h2", "http/1.1"],
                    "tls_certificates": [
                        {
                            "certificate_chain": {"filename": str(edge.certificate)},
                            "private_key": {"filename": str(edge.key)},
                        }
                    ],
                },
            },
        }
    endpoints = [
        {"endpoint": {"address": {"socket_address": {"address": host.strip("[]"), "port_value": port}}}}
        for host, port in edge.upstreams
    ]
    value = {
        "static_resources": {
            "listeners": [
                {
                    "name": "nexus",
                    "address": {"socket_address": {"address": "0.0.0.0", "port_value": edge.port}},  # noqa: S104 - it is the edge
                    "filter_chains": [chain],
                }
            ],
            "clusters": [
                {
                    "name": "gateways",
                    "type": "STRICT_DNS",
                    "connect_timeout": "5s",
                    "lb_policy": "LEAST_REQUEST",
                    "load_assignment": {"cluster_name": "gateways", "endpoints": [{"lb_endpoints": endpoints}]},
                    "circuit_breakers": {
                        "thresholds": [{"max_connections": 20000, "max_pending_requests": 20000, "max_requests": 20000}]
                    },
                }
            ],
        }
    }
    return _heading(edge, "#") + json.dumps(value, indent=2) + "\n"


RENDERERS = {"nginx": render_nginx, "envoy": render_envoy, "haproxy": render_haproxy}
