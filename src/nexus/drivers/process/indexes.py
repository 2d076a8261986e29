"""Where uv finds packages: the host's own UV_* settings, or else its pip configuration in uv's words.

uv reads neither pip.conf nor PIP_*, so a machine that is set up for pip alone would build nothing. Pure but for `read_pip_files`.
"""

import configparser
from collections.abc import Iterable, Mapping
from pathlib import Path

_PASSED = frozenset({
    "PATH", "HOME", "LANG", "TMPDIR", "XDG_CACHE_HOME", "XDG_CONFIG_HOME", "XDG_DATA_HOME", "NETRC",
    "SSL_CERT_FILE", "SSL_CERT_DIR", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY",
    "http_proxy", "https_proxy", "all_proxy", "no_proxy",
})  # fmt: skip
_INDEXES = {"UV_INDEX", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_CONFIG_FILE"}


def plan_environ(environ: Mapping[str, str], pip: Mapping[str, str]) -> dict[str, str]:
    """The variables uv runs with. `pip` holds pip's `global`/`install` settings by name (`index-url`, …)."""
    planned = {name: value for name, value in environ.items() if name in _PASSED or name.startswith("UV_")}
    planned.update(UV_PYTHON_DOWNLOADS="never", UV_NO_PROGRESS="1", NO_COLOR="1")
    settings = {**pip, **_from_variables(environ)}
    if "cert" in settings:
        planned.setdefault("SSL_CERT_FILE", settings["cert"])
    if _INDEXES & planned.keys():
        return planned
    if index := settings.get("index-url"):
        planned["UV_DEFAULT_INDEX"] = index
    if extra := settings.get("extra-index-url"):
        planned["UV_INDEX"] = " ".join(extra.split())
        planned["UV_INDEX_STRATEGY"] = "unsafe-best-match"  # pip treats all indexes as one
    if links := settings.get("find-links"):
        planned["UV_FIND_LINKS"] = ",".join(links.split())
    if hosts := settings.get("trusted-host"):
        planned["UV_INSECURE_HOST"] = " ".join(hosts.split())
    if settings.get("no-index", "").lower() in ("1", "true", "yes", "on"):
        planned["UV_OFFLINE"] = "1"  # uv has no variable for --no-index; folders of wheels work offline
    return planned


def _from_variables(environ: Mapping[str, str]) -> dict[str, str]:
    return {
        name.removeprefix("PIP_").lower().replace("_", "-"): value
        for name, value in environ.items()
        if name.startswith("PIP_") and value
    }


def pip_files(environ: Mapping[str, str]) -> list[Path]:
    """Where pip looks, least important first. Source: pip's user guide, "Configuration"."""
    named = environ.get("PIP_CONFIG_FILE")
    if named == "/dev/null":
        return []
    home = Path(environ.get("HOME") or "/nonexistent")
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    files = [Path("/etc/xdg/pip/pip.conf"), Path("/etc/pip.conf"), home / ".pip" / "pip.conf", config / "pip" / "pip.conf"]
    return [*files, Path(named)] if named else files


def read_pip_files(files: Iterable[Path]) -> dict[str, str]:
    """pip's settings from its files; a file that is absent or malformed gives none."""
    settings: dict[str, str] = {}
    for file in files:
        parser = configparser.RawConfigParser()
        try:
            parser.read_string(file.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, configparser.Error):
            continue
        for section in ("global", "install"):
            if parser.has_section(section):
                settings.update({name.replace("_", "-"): value for name, value in parser.items(section) if value})
    return settings
