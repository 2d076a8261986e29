"""The data plane: one light process per core that authenticates, limits, routes, balances, streams and counts.

Read it along a run: `server` (a client's connection) -> `stages` (the decisions, in order) -> `runs_door`, `doors` (what each
kind of request does) -> `exchange` (bytes to and fro) -> `upstream` (pooled connections). `express` is the same run without
the detours. `feed` keeps `routes` true. The whole picture: docs/explain/gateway.md.
"""
