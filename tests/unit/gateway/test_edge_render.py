"""What may stand in an edge's configuration."""

import json

import pytest

from nexus.apps import edge
from nexus.core import errors


def parse(**fields):
    values = {"names": ("agents.example.com",), "upstreams": ("127.0.0.1:8700",), "port": None, "certificate": None, "key": None}
    return edge.parse_edge(**{**values, **fields})


@pytest.mark.parametrize(
    "fields",
    [
        {"names": ()}, {"names": ("a b",)}, {"names": ("a;",)}, {"names": ("a\nserver {}",)}, {"names": ("",)},
        {"names": ("$host",)},
        {"names": ("{}",)}, {"upstreams": ("127.0.0.1",)}, {"upstreams": ("127.0.0.1:0",)}, {"upstreams": ("a:1;}",)},
        {"upstreams": ("a:99999",)}, {"upstreams": ("unix:/x",)}, {"port": 0}, {"port": 70000}, {"certificate": "/c.pem"},
        {"certificate": "c.pem", "key": "/k.pem"}, {"certificate": "/c;.pem", "key": "/k.pem"},
        {"certificate": "/c.pem", "key": "/k.pem\n"}, {"certificate": "/c.pem", "key": "/k'.pem"},
    ],
)  # fmt: skip
def test_what_could_leave_its_place_is_refused(fields):
    with pytest.raises(errors.Invalid) as refused:
        parse(**fields)
    assert refused.value.code == "edge.invalid"


@pytest.mark.parametrize("name", list(edge.RENDERERS))
def test_every_value_stands_where_it_belongs(name):
    one = parse(
        names=("Agents.example.com", "*.agents.example.com"), upstreams=("10.0.0.1:8700", "[::1]:8701"), certificate="/c.pem",
        key="/k.pem",
    )  # fmt: skip
    text = edge.RENDERERS[name](one)
    assert "NEXUS_ALLOWED_HOSTS=agents.example.com,*.agents.example.com" in text
    assert "/c.pem" in text
    assert "443" in text
    if name == "envoy":
        value = json.loads("".join(line for line in text.splitlines() if not line.startswith("#")))
        cluster = value["static_resources"]["clusters"][0]
        addresses = [
            end["endpoint"]["address"]["socket_address"] for end in cluster["load_assignment"]["endpoints"][0]["lb_endpoints"]
        ]
        assert addresses == [{"address": "10.0.0.1", "port_value": 8700}, {"address": "::1", "port_value": 8701}]
    else:
        assert "10.0.0.1:8700" in text
        assert "[::1]:8701" in text
