"""Every decision about a request, in order. A stage fills in the call or raises a typed error; none does I/O.

To add one: write a function of (call, world), put it in `STAGES` where it belongs (and in `EVERY_TIME` if it may decide
differently on the next request), and test it with a table: docs/howto/add-a-stage.md.
"""

import math
import re
from collections.abc import Callable, Mapping

from nexus.core import environments, errors, names, principals
from nexus.gateway import addresses, balance, breaker, http1, limits, mint, paths, routes, sessions
from nexus.gateway.call import RUNS, Call, Door, Match
from nexus.gateway.world import World
from nexus.kit import keys

_LOOPBACK = re.compile(r"localhost|127(?:\.\d{1,3}){3}|\[::1\]")
_RUN_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")
_TENANT = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_REMEMBERED = 4096
_LONGEST_REMEMBERED = 160


def find_door(call: Call, world: World) -> None:
    path = call.head.path
    key = path if not call.inside else b"\0" + path
    if key in world.paths:
        match = world.paths[key]
    else:
        if http1.is_disguised(path):
            raise errors.Invalid(
                "the path has more than one reading", code="path.invalid", next_step="send it without //, .., ; or %2f"
            )
        match = paths.find(path, inside=call.inside)
        if len(world.paths) >= _REMEMBERED:
            world.paths.clear()
        if len(path) <= _LONGEST_REMEMBERED:
            world.paths[key] = match
    if (
        match is not None
        and match.methods is not None
        and call.head.method not in match.methods
        and call.head.method != b"OPTIONS"
    ):
        able = ", ".join(sorted(method.decode() for method in match.methods))
        raise errors.Invalid(
            f"{_shown(path)} does not take {call.head.method.decode()}",
            code="method.not_allowed",
            next_step=f"use {able}",
            extra={"allow": able},
        )
    call.match = match


def check_host(call: Call, world: World) -> None:
    """Only names that are ours may be in Host: a page that rebinds its own name to loopback is refused."""
    if call.inside:
        return
    host = call.head.named.get(b"host", b"localhost")
    known = world.hosts.get(host)
    if known is None:
        known = _is_our_host(host.decode("ascii").lower(), world)
        if len(world.hosts) >= _REMEMBERED:
            world.hosts.clear()
        world.hosts[host] = known
    if not known:
        raise errors.Invalid(
            f"this host does not answer for {_shown(host)}",
            code="host.refused",
            cause="the Host header names none of this host's own names",
            next_step="add the name to NEXUS_ALLOWED_HOSTS and start the host again",
        )


def _is_our_host(host: str, world: World) -> bool:
    name = re.sub(r":\d+$", "", host)
    if _LOOPBACK.fullmatch(name):
        return True
    bound = world.settings.host.lower()
    if name == (f"[{bound}]" if ":" in bound else bound):
        return True
    allowed = world.settings.hosts | world.table.hosts
    return "*" in allowed or name in allowed or host in allowed


def check_origin(call: Call, world: World) -> None:
    """A browser's page may call only from our own origin or from one that is allowed by configuration."""
    origin = call.head.named.get(b"origin")
    if origin is None or call.inside:
        return
    text = origin.decode("latin-1").lower()
    allowed = world.settings.origins | world.table.origins
    if text in allowed or "*" in allowed:
        call.origin = origin
    elif text.partition("://")[2].encode("latin-1") != call.head.named.get(b"host", b"").lower() or "://" not in text:
        raise errors.Forbidden(
            f"pages from {_shown(origin)} may not call this host",
            code="origin.refused",
            next_step="add the origin to NEXUS_ALLOWED_ORIGINS and start the host again",
        )


def check_upgrade(call: Call, world: World) -> None:
    """A WebSocket is opened where there is one, and nothing else is opened there."""
    match = call.match
    if match is None:
        return
    if call.head.upgrade and match.door not in (Door.SOCKET, Door.CONTROL):
        raise errors.Unavailable(
            "there is no WebSocket here", code="upgrade.unsupported", next_step="agents' are at /agents/{name}/ws"
        )
    if match.door is Door.SOCKET and not call.head.upgrade and call.head.method != b"OPTIONS":
        raise errors.Invalid(
            "this is a WebSocket", code="upgrade.required", next_step="send Connection: Upgrade and Upgrade: websocket"
        )


def answer_preflight(call: Call, world: World) -> None:
    if call.head.method == b"OPTIONS":
        call.match = Match(door=Door.PREFLIGHT, methods=None, public=True)
    elif call.match is None:
        raise errors.NotFound(
            f"there is nothing at {_shown(call.head.path)}",
            code="path.not_found",
            next_step="agents are at /agents/{name}/run; the API is described at /docs",
        )


def authenticate(call: Call, world: World) -> None:
    """One credential, one judgement: a bad one is never followed by a second try with another."""
    match = _matched(call)
    if match.public:
        return
    credential = _credential(call)
    table = world.table
    if not table.loaded:
        raise errors.Unavailable(
            "this gateway has not been told its routes yet",
            code="routes.unavailable",
            retry_after_s=1,
            next_step="try again in a second; `nexus status` shows whether control is up",
        )
    digest = keys.hash_key(credential)
    caller = table.keys.get(digest)
    if caller is None and call.inside:
        caller = table.tokens.get(digest) or sessions.find_caller(credential, table, now=call.started)
    if caller is None or (caller.service and not call.inside):
        raise _unauthenticated("the credential is not known here", code="auth.unknown_key")
    if caller.expires_at is not None and caller.expires_at <= call.started:
        raise _unauthenticated("the key has expired", code="auth.expired")
    call.caller = caller
    call.tenant = caller.principal.tenant


def _credential(call: Call) -> str:
    given = call.head.named.get(b"authorization")
    if given is not None:
        scheme, _, rest = given.partition(b" ")
        if scheme.lower() != b"bearer" or not rest:
            raise _unauthenticated("the Authorization header is not of the form 'Bearer <key>'", code="auth.required")
        return rest.strip().decode("latin-1")
    given = call.head.named.get(b"x-api-key")
    if given is None:
        raise _unauthenticated("this needs an API key", code="auth.required")
    return given.decode("latin-1")


def _unauthenticated(message: str, *, code: str) -> errors.Unauthenticated:
    return errors.Unauthenticated(
        message,
        code=code,
        next_step="send 'Authorization: Bearer nxk_...' with a key from `nexus keys create` or $NEXUS_HOME/admin.key",
    )


def believe_service(call: Call, world: World) -> None:
    """The dispatcher runs tasks in their owner's name; nobody else's claim about tenant, run or attempt is read."""
    caller = call.caller
    if caller is None or not caller.service:
        return
    named = call.head.named
    tenant = named.get(b"nexus-tenant", caller.principal.tenant.encode()).decode("latin-1")
    run_id = named.get(b"nexus-run-id", b"").decode("latin-1")
    attempt = named.get(b"nexus-attempt", b"1").decode("latin-1")
    if _TENANT.fullmatch(tenant) is None:
        raise errors.Invalid("Nexus-Tenant is not a tenant's name", code="header.invalid")
    if (run_id and not _RUN_ID.fullmatch(run_id)) or not attempt.isdigit() or len(attempt) > 9:
        raise errors.Invalid("Nexus-Run-Id or Nexus-Attempt is not valid", code="header.invalid")
    call.trusted, call.tenant, call.run_id, call.attempt = True, tenant, run_id, attempt


def limit_rate(call: Call, world: World) -> None:
    """Count the request against its key and its tenant, also when it will be refused for another reason; where no key is asked
    for, against its address."""
    caller = call.caller
    if caller is not None and not call.relayed:
        _count(call, limits_of_caller(caller, call.tenant, world), world)
    elif (of_address := addresses.find_limit(call, world.settings)) is not None:
        _count(call, (of_address,), world, world.addresses)


def limit_agent(call: Call, world: World) -> None:
    deployment = call.deployment
    if deployment is not None and not call.relayed:
        _count(call, limits_of_deployment(deployment), world)


def limits_of_caller(caller: routes.Caller, tenant: str, world: World) -> tuple[limits.Limit, ...]:
    found = []
    if caller.requests_per_minute is not None:
        found.append(limits.limit("key", caller.principal.id, caller.requests_per_minute))
    shared = world.table.tenant_rates.get(tenant)
    if shared is not None:
        found.append(limits.limit("tenant", f"tenant/{tenant}", shared))
    return tuple(found)


def limits_of_deployment(deployment: routes.Deployment) -> tuple[limits.Limit, ...]:
    rate = deployment.options.requests_per_minute
    return () if rate is None else (limits.limit("agent", f"deployment/{deployment.id}", rate),)


_LIMITED = {"key": "key {key}", "tenant": "tenant {tenant}", "agent": "this agent", addresses.SCOPE: "one address"}


def _count(call: Call, applying: tuple[limits.Limit, ...], world: World, rates: limits.Rates | None = None) -> None:
    if not applying:
        return
    limit, spare_s = verdict = (rates or world.rates).take_all(applying, world.loop.time())
    if call.quota is None or spare_s * limit.per_minute < call.quota[1] * call.quota[0].per_minute:
        call.quota = verdict
    if spare_s < 0:
        what = _LIMITED[limit.scope].format(key=limit.key, tenant=call.tenant)
        raise errors.Exhausted(
            f"{what} may {'take' if limit.scope == 'agent' else 'send'} {limit.per_minute} requests a minute",
            code="limit.requests",
            retry_after_s=max(1.0, math.ceil(-spare_s)),
            next_step="wait as long as Retry-After says, or ask for a higher limit",
        )


def authorise(call: Call, world: World) -> None:
    """May this caller use this door, and this agent? Asked before anything is looked up, so a no tells nothing."""
    match, caller = _matched(call), call.caller
    if caller is None:
        return
    if match.door in RUNS:
        if not caller.service:
            caller.principal.require(principals.Action.RUN, agent=match.name)
    elif match.door is Door.MODEL and caller.token is None:
        caller.principal.require(principals.Action.RUN)
    elif match.door is Door.RUN_USAGE and caller.token is None:
        raise errors.Forbidden("only an instance may ask what its runs used", next_step="see GET /v1/runs")
    elif match.door is Door.CONTROL and caller.token is not None and not call.head.path.startswith(b"/door/"):
        raise errors.Forbidden(
            "an instance's token opens the models and /door/ only", next_step="call the API with an API key of its own"
        )


def resolve_deployment(call: Call, world: World) -> None:
    """Agent and environment to a deployment; what belongs to another tenant looks exactly like what is absent."""
    match, caller = _matched(call), call.caller
    if match.door not in RUNS or caller is None:
        return
    by_environment = world.table.agents.get((call.tenant, match.name))
    asked = call.head.named.get(b"nexus-environment")
    environment = None if asked is None else names.parse_label(asked.decode("latin-1"), "environment")
    narrowed = caller.principal.environment
    if narrowed is not None and environment is not None and environment != narrowed:
        raise errors.Forbidden(
            f"key {caller.principal.id} is for the environment {narrowed} only",
            code="auth.forbidden",
            next_step=f"leave Nexus-Environment out, or use a key for {environment}",
        )
    if not by_environment:
        raise errors.NotFound(
            f"there is no agent {match.name!r}",
            code="agent.not_found",
            next_step="see `nexus ai agent list`, or deploy it with `nexus ai agent deploy`",
        )
    call.deployment = _pick(by_environment, environment or narrowed, match.name)


def _pick(deployed: Mapping[str, routes.Deployment], wanted: str | None, agent: str) -> routes.Deployment:
    choices = ", ".join(sorted(deployed))
    if wanted is not None:
        found = deployed.get(wanted)
        if found is None:
            raise errors.NotFound(
                f"agent {agent!r} is not deployed in {wanted}",
                code="environment.not_deployed",
                cause=f"it is deployed in {choices}",
                next_step="name one of these in Nexus-Environment",
            )
        return found
    if "production" in deployed:
        return deployed["production"]
    meant = [name for name in deployed if not environments.is_scratch(name)]
    if len(meant) == 1:
        return deployed[meant[0]]
    raise errors.Invalid(
        f"agent {agent!r} is deployed in several environments",
        code="environment.required",
        cause=f"it is deployed in {choices}",
        next_step="name one of these in Nexus-Environment",
    )


def pin_version(call: Call, world: World) -> None:
    """Who may deploy may call a version by name: one that is prepared and has no traffic yet, too. Tasks name none."""
    given, deployment, caller = call.head.named.get(b"nexus-version"), call.deployment, call.caller
    if given is None or deployment is None or caller is None or caller.service:
        return
    caller.principal.require(principals.Action.DEPLOY, agent=deployment.agent)
    version = given.decode("latin-1")
    if version not in deployment.versions and version not in deployment.idle:
        there = ", ".join(sorted({*deployment.versions, *deployment.idle})) or "none"
        raise errors.NotFound(
            f"no instance of {deployment.agent} ({deployment.environment}) has the version {_shown(given)}",
            code="version.not_serving",
            cause=f"instances are ready of: {there}",
            next_step=f"name one of these in Nexus-Version, or see `nexus ai agent rollout status {deployment.agent}`",
        )
    call.version = version


def name_run(call: Call, world: World) -> None:
    """Run id, trace, and the client's session if it named one."""
    match = _matched(call)
    if match.door not in RUNS:
        return
    if not call.run_id:
        call.run_id = world.minter.run_id()
    carried = call.head.named.get(b"traceparent")
    trace_id = mint.parse_traceparent(carried)
    if carried is not None and trace_id is not None:
        call.traceparent, call.trace_id = carried, trace_id
    else:
        call.traceparent, call.trace_id = world.minter.traceparent()
    given = call.head.named.get(b"nexus-session-id")
    if given is not None:
        session = given.decode("latin-1")
        if not names.is_session_id(session) or session in (".", ".."):
            raise errors.Invalid(
                "Nexus-Session-Id is not a session id",
                code="session.invalid",
                cause="a session id is 1 to 256 of A-Z a-z 0-9 . _ : @ -",
                next_step="send one such as 'customer-42', or none and use the one in the answer",
            )
        call.session_id, call.session_given = session, True


def break_circuit(call: Call, world: World) -> None:
    """Refuse at once what has just failed again and again, where the deployment wants that."""
    deployment = call.deployment
    if deployment is None or deployment.options.threshold is None or call.version is not None:
        return
    now = world.loop.time()
    if not deployment.circuit.may_pass(deployment.options.threshold, now):
        raise breaker.refusal(deployment.agent, deployment.circuit, now)


def choose_instance(call: Call, world: World) -> None:
    """The instance for this run, or none for now (the run then waits). Asked again after a wait or a refused connection."""
    deployment = call.deployment
    if deployment is None:
        return
    session_id = call.session_id if call.session_given else None
    version = call.version
    if version is None and (len(deployment.versions) > 1 or deployment.kept):
        version = balance.decide_version(
            deployment, session_id=session_id, user=_user(call), pins=world.pins, draw=world.draw
        )  # fmt: skip
    instance = balance.decide_instance(
        deployment, session_id=session_id, now=world.loop.time(), without=call.tried, version=version
    )  # fmt: skip
    call.instance = instance
    call.awaited = version if instance is None and version in deployment.asleep else None
    if instance is None:
        if version is not None and call.awaited:
            world.calls.note(deployment.id, version, world.loop.time())
        return
    if not call.session_given:
        call.session_id = world.minter.session_id(instance.tag)
    lasts = call.session_given or deployment.options.isolated or len(deployment.versions) > 1
    if call.session_id is not None and call.version is None and lasts:
        balance.note_session(deployment, call.session_id, instance, world.pins, world.clock())


def _user(call: Call) -> str:
    """Who a split by user is by: the user that the caller names, else the caller."""
    named = call.head.named.get(b"nexus-user-id")
    if named is not None:
        return named.decode("latin-1")
    return call.caller.principal.id if call.caller is not None else ""


STAGES: tuple[Callable[[Call, World], None], ...] = (
    check_host,
    check_origin,
    find_door,
    check_upgrade,
    answer_preflight,
    authenticate,
    believe_service,
    limit_rate,
    authorise,
    resolve_deployment,
    pin_version,
    limit_agent,
    break_circuit,
    name_run,
    choose_instance,
)
EVERY_TIME = frozenset({limit_rate, limit_agent, break_circuit, name_run, choose_instance})


def decide(call: Call, world: World) -> None:
    """Run every stage on a call; the first error ends it."""
    for stage in STAGES:
        stage(call, world)


def admit(call: Call, world: World) -> bool:
    """Run the stages whose outcome hangs on nothing but the request line, Host, credential, Nexus-Environment and the route
    table, so that it can be remembered as long as the table stands. False when one objects. The rest are in `EVERY_TIME`."""
    try:
        for stage in STAGES:
            if stage not in EVERY_TIME:
                stage(call, world)
    except errors.NexusError:
        return False
    return True


def refresh_deployment(call: Call, world: World) -> bool:
    """Look the call's deployment up again after a wait; False when it is gone."""
    old = call.deployment
    if old is None:
        return False
    call.deployment = world.table.agents.get((old.tenant, old.agent), {}).get(old.environment)
    return call.deployment is not None


def _matched(call: Call) -> Match:
    if call.match is None:
        raise errors.Internal("a stage ran before the path was matched")
    return call.match


def _shown(text: bytes) -> str:
    """What a client sent, cut and without anything that could move a terminal."""
    return repr(text[:80].decode("latin-1"))
