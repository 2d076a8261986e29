"""What `nexus status` and `nexus doctor` print, and what decides their exit codes."""

from nexus.apps import doctor, keeper, keeper_record
from nexus.apps.doctor import Finding
from nexus.cli import host
from nexus.kit.home import Home


def test_the_doctor_shows_how_to_mend_only_what_is_broken():
    findings = [
        Finding(name="a", level="ok", detail="fine", mend="never shown"),
        Finding(name="b", level="warn", detail="weak", mend="do this"),
    ]
    text = "\n".join(doctor.render(findings, colour=False))
    assert "do this" in text
    assert "never shown" not in text
    assert doctor.is_fit(findings)
    assert not doctor.is_fit([*findings, Finding(name="c", level="fail", detail="no")])
    assert "\x1b" not in text


def test_status_names_processes_and_deployments():
    process = {"name": "control", "pid": 7, "alive": True, "memory_bytes": 1048576, "uptime_s": 93784.0, "restarts": 2}
    deployment = {"agent": "hello", "environment": "production", "version": "1.0.0", "phase": "active", "ready": 1, "replicas": 2}
    found = {
        "running": True, "ready": True, "origin": "http://127.0.0.1:1", "version": "1", "home": "/h", "database": "embedded",
        "gateway": "answers", "processes": [process], "memory_bytes": 1048576, "deployments": [deployment],
    }  # fmt: skip
    text = "\n".join(host.render_status(found))
    for part in ("control", "1.0 MiB", "1d2h", "hello", "1/2", "http://127.0.0.1:1"):
        assert part in text


def test_status_of_nothing_says_what_to_do():
    assert any("nexus up" in line for line in host.render_status({"running": False, "home": "/h"}))


def test_the_banner_never_shows_the_key_itself(tmp_path):
    home = Home(tmp_path)
    record = keeper_record.HostRecord(
        origin="http://127.0.0.1:1", pid=1, ticks=1, started_at=1.0, host="127.0.0.1", port=1, gateways=1, database="embedded",
        boot="", version="1",
    )  # fmt: skip
    home.admin_key.write_text("nxk_secret")
    lines = "\n".join(keeper.render_banner(record, home, {"isolation": "process", "missing": ["landlock"]}, 0))
    assert "nxk_secret" not in lines
    assert str(home.admin_key) in lines
    assert "landlock" in lines
