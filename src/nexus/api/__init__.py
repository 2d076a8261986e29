"""The control API: parse, call one verb, render. Its OpenAPI document is the contract (docs/reference/openapi.json)."""
