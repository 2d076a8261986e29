#!/usr/bin/env bash
# Runs `nexus ai agent deploy` with the inputs of the action, and hands its answer on as outputs and a summary.
set -euo pipefail

arguments=(ai agent deploy --env "$INPUT_ENVIRONMENT" --json)
[ -z "${INPUT_PATH:-}" ] || arguments+=(--path "$INPUT_PATH")
[ -z "${INPUT_VERSION:-}" ] || arguments+=(--version "$INPUT_VERSION")
[ -z "${INPUT_REPLICAS:-}" ] || arguments+=(--replicas "$INPUT_REPLICAS")
[ -z "${INPUT_CPU:-}" ] || arguments+=(--cpu "$INPUT_CPU")
[ -z "${INPUT_MEMORY:-}" ] || arguments+=(--memory "$INPUT_MEMORY")
arguments+=(-- "$INPUT_AGENT")
if [ -n "${INPUT_URL:-}" ]; then
  export NEXUS_URL="$INPUT_URL"
fi
if [ -z "${NEXUS_URL:-}" ]; then
  echo "::error title=Nexus::say where the host is: with url, or NEXUS_URL in the job's environment"
  exit 2
fi
if [ -z "${NEXUS_API_KEY:-}" ]; then
  echo "::error title=Nexus::the token is empty; is the secret set for this repository?"
  exit 3
fi

answer=$(mktemp)
trap 'rm -f "$answer"' EXIT
code=0
nexus "${arguments[@]}" > "$answer" || code=$?
python=$(command -v python3 || command -v python)
"$python" "$ACTION_PATH/report.py" "$answer"
exit "$code"
