#!/usr/bin/env bash
# Resolve requirements.lock again: every platform, every hash, and no host name of an index (docs/decisions/0001).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
target="$(mktemp)"
trap 'rm -f "$target"' EXIT
cp requirements.lock "$target" 2>/dev/null || true # known versions stay unless asked: make lock LOCK_ARGS=--upgrade
# shellcheck disable=SC2086
.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links ${LOCK_ARGS:-} \
    --extra server --extra offline --group dev --output-file "$target" pyproject.toml
if grep -nE '://|^-' "$target"; then
    echo "lock: the resolved file names a host or an option; it was not written" >&2
    exit 1
fi
{
    echo "# Everything that make setup installs, with hashes. Written by make lock from pyproject.toml; not by hand."
    grep -v '^#' "$target"
} >requirements.lock
# The translator lives in an environment of its own: its library needs SDKs that contradict ours.
printf '%s\n' 'any-llm-sdk[anthropic,openai]>=1.40' 'uvicorn>=0.38' >"$target.in"
cp src/nexus/models/translator.lock "$target"
# shellcheck disable=SC2086
.venv/bin/python -m uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
    --no-header --no-annotate --no-emit-index-url --no-emit-find-links ${LOCK_ARGS:-} --output-file "$target" "$target.in"
rm -f "$target.in"
if grep -nE '://|^-' "$target"; then
    echo "lock: the translator's file names a host or an option; it was not written" >&2
    exit 1
fi
{
    echo "# What the translator's own environment holds, with hashes (see nexus.models.translator). Written by scripts/lock.sh."
    grep -v '^#' "$target"
} >src/nexus/models/translator.lock
echo "lock: $(grep -c == requirements.lock) packages, and $(grep -c == src/nexus/models/translator.lock) of the translator"
