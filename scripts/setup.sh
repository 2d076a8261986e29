#!/usr/bin/env bash
# Build .venv in the checkout from requirements.lock, with every hash checked. Safe to run again: a stamp says it is done.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { printf '%s\n' "$*"; }
stop() { printf 'setup: %s\n' "$*" >&2; exit 1; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; }

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if [[ -n "$candidate" ]] && command -v "$candidate" >/dev/null && is_new_enough "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    stop "Python 3.11 or newer was not found. On Debian 12 or Ubuntu 24.04: apt install python3 python3-venv." \
         "Elsewhere set PYTHON=/path/to/python3.11."
}

make_venv() {
    local python="$1" message
    if message=$("$python" -m venv --clear .venv 2>&1); then
        return
    fi
    if command -v uv >/dev/null && uv venv --quiet --clear --seed --python "$python" .venv; then
        return
    fi
    rm -rf .venv
    say "$message" >&2
    stop "this Python cannot make virtual environments. On Debian or Ubuntu: apt install python3-venv," \
         "then run make setup again."
}

if command -v flock >/dev/null; then # two makes at once: the second waits and then finds the work done
    exec 9>.setup.lock
    flock 9
fi

stamp=.venv/.setup-done
wanted="$(cat requirements.lock pyproject.toml | sha256sum) $(pwd)"
if [[ -f $stamp && "$(cat "$stamp")" == "$wanted" ]] && .venv/bin/python -c 'import nexus, uvicorn' 2>/dev/null; then
    touch "$stamp"
    exit 0
fi

# A folder that was moved or copied, or whose Python is gone, is built again: scripts in it name their interpreter by path.
if [[ ! -x .venv/bin/python ]] || ! is_new_enough .venv/bin/python || ! .venv/bin/python -m pip --version >/dev/null 2>&1 \
    || [[ -f $stamp && "$(tail -c +65 "$stamp")" != "$(tail -c +65 <<<"$wanted")" ]]; then
    python="$(find_python)"
    say "setup: making .venv with $("$python" --version)"
    make_venv "$python"
fi
say "setup: installing the locked requirements (a minute or two the first time)"
quiet=(-qq --disable-pip-version-check --no-input)
[[ $EUID -ne 0 ]] || export PIP_ROOT_USER_ACTION=ignore
.venv/bin/python -m pip install "${quiet[@]}" --require-hashes --only-binary :all: -r requirements.lock
.venv/bin/python -m pip install "${quiet[@]}" --no-deps --no-build-isolation --editable .
.venv/bin/python -m compileall -q src/nexus || true
printf '%s\n' "$wanted" >"$stamp"
say "setup: done. Try: make demo, or .venv/bin/nexus up"
