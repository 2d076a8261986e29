#!/usr/bin/env bash
# Puts the nexus command on the PATH: from the checkout this action is part of, or the named version from the package index.
set -euo pipefail

source_tree=$(cd "$ACTION_PATH/../.." && pwd)
if [ -n "${CLI_VERSION:-}" ]; then
  if ! [[ "$CLI_VERSION" =~ ^[0-9A-Za-z][0-9A-Za-z.+!-]*$ ]]; then
    echo "::error title=Nexus::cli-version is not a version"
    exit 2
  fi
  wanted="nexus-agent-hosting==$CLI_VERSION"
elif [ -f "$source_tree/pyproject.toml" ]; then
  wanted="$source_tree"
else
  wanted="nexus-agent-hosting"
fi

python=$(command -v python3 || command -v python)
place="${RUNNER_TEMP:-/tmp}/nexus-cli"
"$python" -m venv "$place"
"$place/bin/python" -m pip install --quiet --disable-pip-version-check "$wanted"
echo "$place/bin" >> "$GITHUB_PATH"
