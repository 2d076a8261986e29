"""Print the OpenAPI document: `python -m nexus.api.openapi > docs/reference/openapi.json`."""

import json
import sys

from nexus.api import app


def render() -> str:
    return json.dumps(app.create_app(None).openapi(), indent=2, sort_keys=True, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(render())
