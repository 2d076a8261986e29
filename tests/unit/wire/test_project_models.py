"""`hosting.models`: what an agent may choose for its model calls, and what the gateway is told of it."""

import pydantic
import pytest

from nexus.gateway import model_policy
from nexus.wire.project_models import Models


def test_nothing_chosen_is_nothing_told() -> None:
    assert Models().plan() == {}
    assert Models.model_validate({"cache": False, "embedding_cache": None}).plan() == {}


def test_a_switch_stands_for_the_defaults() -> None:
    assert Models.model_validate({"cache": True}).plan() == {
        "cache": {"ttl": 300.0, "size": 64 * 1024 * 1024, "scope": "agent", "always": False}
    }


def test_what_is_written_is_what_the_gateway_reads() -> None:
    given = {
        "cache": {"ttl": "10m", "size": "32MiB", "scope": "tenant", "always": True},
        "embedding_cache": {"ttl": "1d"},
        "audit_content": False,
    }
    policy = model_policy.parse_policy(Models.model_validate(given).plan(), where="here")
    assert policy.cache == model_policy.CachePolicy(ttl_s=600.0, size=32 * 1024 * 1024, scope="tenant", always=True)
    assert policy.embeddings is not None
    assert (policy.embeddings.ttl_s, policy.embeddings.scope) == (86400.0, "agent")
    assert policy.audit_content is False


@pytest.mark.parametrize(
    "given",
    [
        {"cache": {"ttl": "0s"}}, {"cache": {"ttl": "31d"}}, {"cache": {"size": "10GiB"}}, {"cache": {"scope": "everybody"}},
        {"cache": {"tll": "1s"}}, {"cache": 300}, {"audit_content": "yes please"}, {"semantic_cache": True},
    ],
)  # fmt: skip
def test_what_means_nothing_is_refused(given: dict) -> None:
    with pytest.raises(pydantic.ValidationError):
        Models.model_validate(given)


@pytest.mark.parametrize(
    "given", [None, 7, [], {"cache": {"ttl": 1}}, {"cache": {"ttl": 1, "size": 1, "scope": "x"}}, {"cache": 1}]
)
def test_a_gateway_reads_leniently(given: object) -> None:
    assert model_policy.parse_policy(given, where="here").cache is None
