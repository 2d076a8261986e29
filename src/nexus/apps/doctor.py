"""What this machine can and cannot do for the host, each finding with a way to mend it. Called by `nexus doctor`."""

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from nexus.apps import doctor_kernel, keeper_ground, keeper_probe, keeper_record, settings
from nexus.core import errors
from nexus.kit.home import Home
from nexus.stores import embedded, embedded_binaries

Level = Literal["ok", "warn", "fail"]
_SIGNS = {"ok": ("✓", "32"), "warn": ("!", "33"), "fail": ("✗", "31")}
_GIB = 1024**3
_PROVIDER_KEYS = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """`fail`: the host cannot run so. `warn`: it runs with less. `mend` is what to do about it."""

    name: str
    level: Level
    detail: str
    mend: str = ""


def examine(wanted: settings.HostSettings, environ: Mapping[str, str]) -> list[Finding]:
    """Every check in the order of the report. Takes a few seconds at most; changes nothing."""
    home = wanted.home
    checks: list[Callable[[], Finding | list[Finding]]] = [
        _python,
        _machine,
        lambda: _home(home),
        lambda: _database(wanted),
        lambda: _port(wanted),
        lambda: _isolation(home),
        _kernel,
        _builder,
        lambda: _index(environ),
        lambda: _models(home, environ),
        _orphans,
    ]
    findings: list[Finding] = []
    for check in checks:
        found = check()
        findings.extend(found if isinstance(found, list) else [found])
    return findings


def _kernel() -> list[Finding]:
    """The kernel's layers, one finding each."""
    return [
        Finding(
            name=fact.name,
            level="ok" if fact.present else ("fail" if fact.needed else "warn"),
            detail=fact.detail,
            mend=fact.mend,
        )
        for fact in doctor_kernel.read_facts()
    ]


def is_fit(findings: Sequence[Finding]) -> bool:
    return all(entry.level != "fail" for entry in findings)


def to_json(finding: Finding) -> dict[str, str]:
    return {"name": finding.name, "level": finding.level, "detail": finding.detail, "mend": finding.mend}


def render(findings: Sequence[Finding], *, colour: bool) -> list[str]:
    """The report as lines."""
    lines = []
    for entry in findings:
        sign, code = _SIGNS[entry.level]
        shown = f"\x1b[{code}m{sign}\x1b[0m" if colour else sign
        lines.append(f"{shown} {entry.name:<18} {entry.detail}")
        if entry.mend and entry.level != "ok":
            lines.append(f"  {'':<18} mend: {entry.mend}")
    failed = sum(entry.level == "fail" for entry in findings)
    weak = sum(entry.level == "warn" for entry in findings)
    lines.append("")
    lines.append(f"{'the host cannot run here' if failed else 'the host can run here'}: {failed} to mend, {weak} to know about")
    return lines


def _python() -> Finding:
    version = platform.python_version()
    return Finding(name="python", level="ok", detail=f"{version} at {sys.executable}")


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    total, available = doctor_kernel.read_memory()
    enough = available >= _GIB // 2
    return [
        Finding(name="cores", level="ok", detail=f"{cores} ({platform.machine()}, Linux {platform.release()})"),
        Finding(
            name="memory",
            level="ok" if enough else "warn",
            detail=f"{available / _GIB:.1f} of {total / _GIB:.1f} GiB available",
            mend="" if enough else "the host takes 250 MiB and every agent from 30 MiB: free some memory",
        ),
    ]


def _home(home: Home) -> list[Finding]:
    place = home.root
    while not place.exists():
        place = place.parent
    findings = []
    writable = os.access(place, os.W_OK | os.X_OK)
    findings.append(
        Finding(
            name="home",
            level="ok" if writable else "fail",
            detail=f"{home.root}" + ("" if writable else ": no permission to write"),
            mend="set NEXUS_HOME to a directory of yours",
        )
    )
    free = shutil.disk_usage(place).free
    level: Level = "ok" if free > 2 * _GIB else "warn" if free > _GIB // 4 else "fail"
    findings.append(
        Finding(name="disk", level=level, detail=f"{free / _GIB:.1f} GiB free at {place}", mend="free space, or move NEXUS_HOME")
    )
    if home.run.parent != home.root:
        findings.append(Finding(name="sockets", level="ok", detail=f"in {home.run}, because the home's path is long"))
    return findings


def _database(wanted: settings.HostSettings) -> Finding:
    if wanted.database_url:
        return _external_database(wanted.database_url)
    found = embedded_binaries.find_all()
    try:
        major = embedded.read_version(embedded.locate(wanted.home).data) if embedded.is_located(wanted.home) else None
        chosen = embedded_binaries.choose(found, major=major)
    except errors.NexusError as error:
        return Finding(name="database", level="fail", detail=error.message, mend=error.next_step or "")
    origin = "from the wheel" if chosen.origin == "wheel" else f"of the system ({chosen.directory})"
    state = "" if major else ", to be made at the first start"
    return Finding(name="database", level="ok", detail=f"PostgreSQL {chosen.major} {origin}, on a private unix socket{state}")


def _external_database(url: str) -> Finding:
    try:
        import psycopg
    except ImportError:
        return Finding(
            name="database", level="fail", detail="psycopg is not installed", mend="pip install 'nexus-agent-hosting[server]'"
        )
    try:
        with psycopg.connect(url, connect_timeout=5) as connection:
            version = connection.info.server_version // 10000
            row = connection.execute("select has_database_privilege(current_database(), 'CREATE')").fetchone()
    except psycopg.Error as error:
        cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return Finding(
            name="database", level="fail", detail=f"NEXUS_DATABASE_URL does not answer: {cause}", mend="correct it, or unset it"
        )
    if version < 14 or not (row and row[0]):
        return Finding(
            name="database",
            level="fail",
            detail=f"PostgreSQL {version} by NEXUS_DATABASE_URL" + ("" if version < 14 else ", without the right to create"),
            mend="PostgreSQL 14 or newer, and GRANT CREATE ON DATABASE to its user",
        )
    return Finding(name="database", level="ok", detail=f"PostgreSQL {version} by NEXUS_DATABASE_URL")


def _port(wanted: settings.HostSettings) -> Finding:
    record = keeper_record.read(wanted.home)
    if record is not None and keeper_record.is_alive(record):
        address, certificate = (settings.reachable(record.host), record.port), keeper_record.certificate_of(record)
        answer = keeper_probe.ask(address, "/health", timeout_s=2.0, certificate=certificate)
        fine = answer is not None and answer[0] == 200
        return Finding(
            name="port",
            level="ok" if fine else "warn",
            detail=f"the host runs at {record.origin}" + ("" if fine else " and does not answer"),
            mend="nexus down, then nexus up",
        )
    try:
        keeper_ground.check_port(wanted.host, wanted.port)
    except errors.NexusError as error:
        return Finding(name="port", level="fail", detail=f"{error.message}: {error.cause}", mend=error.next_step or "")
    return Finding(name="port", level="ok", detail=f"{wanted.port} on {wanted.host} is free")


def _isolation(home: Home) -> Finding:
    """What the running node says itself; before that only the kernel's layers below are known."""
    answer = keeper_probe.ask(home.supervisor_socket, "/capabilities", timeout_s=2.0)
    if answer is None or answer[0] != 200 or not isinstance(answer[1], dict):
        return Finding(name="isolation", level="ok", detail="decided at the start from the layers below")
    missing = [str(entry) for entry in answer[1].get("missing") or ()]
    return Finding(
        name="isolation",
        level="warn" if missing else "ok",
        detail=f"{answer[1].get('isolation')}" + (f"; without: {'; '.join(missing)}" if missing else ""),
        mend="the lines below say which layer of the kernel is closed",
    )


def _builder() -> Finding:
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    program = beside if os.access(beside, os.X_OK) else shutil.which("uv")
    if program is None:
        return Finding(
            name="uv",
            level="fail",
            detail="not found: environments cannot be built",
            mend="pip install 'nexus-agent-hosting[server]'",
        )
    answer = subprocess.run([program, "--version"], capture_output=True, text=True, timeout=20, check=False)
    return Finding(name="uv", level="ok", detail=f"{answer.stdout.strip()} at {program}")


def _index(environ: Mapping[str, str]) -> Finding:
    """Ask the package index for one small package through uv, so that mirrors and proxies are honoured as in a build."""
    beside = os.path.join(os.path.dirname(sys.executable), "uv")
    program = beside if os.access(beside, os.X_OK) else shutil.which("uv")
    if program is None:
        return Finding(name="package index", level="warn", detail="not asked: there is no uv")
    command = [program, "pip", "compile", "--quiet", "--no-deps", "--no-cache", "-"]
    try:
        answer = subprocess.run(
            command, input="idna\n", capture_output=True, text=True, timeout=15, check=False, env=dict(environ), cwd="/"
        )
        reached = answer.returncode == 0
    except subprocess.TimeoutExpired:
        reached = False
    return Finding(
        name="package index",
        level="ok" if reached else "warn",
        detail="answers" if reached else "does not answer: agents with requirements cannot be built, those without can",
        mend="check the network, or set UV_INDEX_URL / UV_FIND_LINKS to a mirror",
    )


def _models(home: Home, environ: Mapping[str, str]) -> list[Finding]:
    pulled = sorted(entry.parent.name for entry in home.models.glob("*/model.gguf"))
    keys = [name for name in _PROVIDER_KEYS if environ.get(name)]
    have = [*(f"{name} (local)" for name in pulled), *(f"{name} is set" for name in keys)]
    return [
        Finding(
            name="models",
            level="ok" if have else "warn",
            detail=", ".join(have) or "none: agents cannot call a language model yet",
            mend="nexus models pull smollm2, or set OPENAI_API_KEY or ANTHROPIC_API_KEY before nexus up",
        )
    ]


def _orphans() -> list[Finding]:
    """Databases that root's homes kept outside and whose home is gone."""
    lost = [f"{folder} (of {home})" for folder, home in embedded.find_abandoned()] if os.geteuid() == 0 else []
    if not lost:
        return []
    shown = ", ".join(lost[:3]) + (f" and {len(lost) - 3} more" if len(lost) > 3 else "")
    return [Finding(name="orphans", level="warn", detail=f"databases whose home is gone: {shown}", mend="remove those folders")]
