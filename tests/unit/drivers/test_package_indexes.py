"""A host that is set up for pip alone can build environments with uv."""

from pathlib import Path

from nexus.drivers.process import indexes


def test_nothing_of_the_host_but_what_uv_needs() -> None:
    planned = indexes.plan_environ({"PATH": "/bin", "AWS_SECRET": "x", "UV_CACHE_DIR": "/c", "https_proxy": "p"}, {})
    assert planned == {
        "PATH": "/bin",
        "UV_CACHE_DIR": "/c",
        "https_proxy": "p",
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_NO_PROGRESS": "1",
        "NO_COLOR": "1",
    }


def test_pips_settings_in_uvs_words_variables_over_files() -> None:
    pip = {"index-url": "https://file/simple", "extra-index-url": "https://b/simple\nhttps://c/simple", "cert": "/ca.pem"}
    planned = indexes.plan_environ(
        {"PIP_INDEX_URL": "https://a/simple", "PIP_FIND_LINKS": "/wheels /more", "PIP_NO_INDEX": "1"}, pip
    )
    assert planned["UV_DEFAULT_INDEX"] == "https://a/simple"
    assert planned["UV_INDEX"] == "https://b/simple https://c/simple"
    assert planned["UV_INDEX_STRATEGY"] == "unsafe-best-match"
    assert planned["UV_FIND_LINKS"] == "/wheels,/more"
    assert planned["SSL_CERT_FILE"] == "/ca.pem"
    assert planned["UV_OFFLINE"] == "1"


def test_uvs_own_settings_win() -> None:
    planned = indexes.plan_environ({"UV_DEFAULT_INDEX": "https://uv/simple", "PIP_INDEX_URL": "https://pip/simple"}, {})
    assert planned["UV_DEFAULT_INDEX"] == "https://uv/simple"
    assert "UV_INDEX_STRATEGY" not in planned


def test_pip_files_are_read_in_order_and_bad_ones_ignored(tmp_path: Path) -> None:
    (tmp_path / "one").write_text("[global]\nindex_url = https://one\ncert = /c\n")
    (tmp_path / "two").write_text("[install]\nindex-url = https://two\n")
    (tmp_path / "bad").write_bytes(b"\xff[[[")
    files = [tmp_path / name for name in ("one", "absent", "bad", "two")]
    assert indexes.read_pip_files(files) == {"index-url": "https://two", "cert": "/c"}
    named = indexes.pip_files({"HOME": str(tmp_path), "PIP_CONFIG_FILE": "/x.conf"})
    assert named[-1] == Path("/x.conf")
    assert indexes.pip_files({"PIP_CONFIG_FILE": "/dev/null"}) == []
