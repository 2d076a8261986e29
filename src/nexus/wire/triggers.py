"""Triggers as they cross the wire: what makes one, and what is shown of it."""

from typing import Any, Literal, Self

from pydantic import Field, model_validator

from nexus.wire import params, views

Broker = Literal["rabbit", "kafka", "nats", "redis"]
SCHEMES: dict[str, Broker] = {
    "amqp": "rabbit", "amqps": "rabbit", "kafka": "kafka", "nats": "nats", "tls": "nats", "redis": "redis", "rediss": "redis",
}  # fmt: skip


class HookParams(params.Params):
    """How an inbound webhook proves who sent it. `standard` is Standard Webhooks; `github` and `stripe` are theirs; `hmac` is any
    HMAC over the body in a `header`. `secret` may be left out: one is made and shown once. `id_header` names the header (scheme
    hmac) that tells repeated deliveries apart."""

    scheme: Literal["standard", "github", "stripe", "hmac"] = "standard"
    secret: str | None = Field(default=None, min_length=8, max_length=1024, repr=False)
    header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")
    algorithm: Literal["sha256", "sha512", "sha1"] = "sha256"
    encoding: Literal["hex", "base64"] = "hex"
    prefix: str = Field(default="", max_length=32)
    id_header: str | None = Field(default=None, pattern=r"^[A-Za-z0-9-]{1,64}$")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.scheme == "hmac" and self.header is None:
            raise ValueError("scheme hmac needs the name of the header")
        if self.scheme == "stripe" and self.secret is None:
            raise ValueError("Stripe makes the secret; give it")
        return self


class QueueParams(params.Params):
    """Where messages come from. `url` is amqp://, kafka://, nats:// or redis:// (several Kafka hosts with commas); `name` a queue
    (RabbitMQ), topic (Kafka), subject of a JetStream `stream` (NATS) or stream (Redis). Results go to `reply`, what cannot become
    a task to `dead` (default: `<name>.dead`). `group` is the consumer group."""

    url: str = Field(max_length=2048, pattern=r"^(amqps?|kafka|nats|tls|rediss?)://[^\s]+$", repr=False)
    name: str = Field(min_length=1, max_length=200, pattern=r"^[A-Za-z0-9._:/-]+$")
    group: str = Field(default="nexus", pattern=r"^[A-Za-z0-9._-]{1,64}$")
    stream: str | None = Field(default=None, pattern=r"^[A-Za-z0-9_-]{1,64}$")
    reply: str | None = Field(default=None, max_length=200, pattern=r"^[A-Za-z0-9._:/-]+$")
    dead: str | None = Field(default=None, max_length=200, pattern=r"^[A-Za-z0-9._:/-]+$")
    prefetch: int = Field(default=16, ge=1, le=1000)


class TriggerParams(params.Params):
    """Body of `POST /v1/triggers`: a `hook` or a `queue`. `task` holds what each of its tasks is submitted with; the input is the
    message."""

    name: str
    agent: str
    environment: str | None = None
    hook: HookParams | None = None
    queue: QueueParams | None = None
    task: params.SubmitParams = Field(default_factory=params.SubmitParams)

    @model_validator(mode="after")
    def _one_kind(self) -> Self:
        if (self.hook is None) == (self.queue is None):
            raise ValueError("give either hook or queue")
        return self


class TriggerView(views.View):
    """A trigger; `secret` is filled once, in the answer to its creation. `url` is where a webhook is sent, or the broker without
    its password. `problem` says why no messages come."""

    id: str
    name: str
    agent: str
    environment: str
    kind: Literal["hook", "queue"]
    active: bool
    url: str
    settings: dict[str, Any] = Field(default_factory=dict)
    task: dict[str, Any] = Field(default_factory=dict)
    taken: int = 0
    refused: int = 0
    last_at: float | None = None
    last_task_id: str | None = None
    problem: str | None = None
    created_at: float
    secret: str | None = None
