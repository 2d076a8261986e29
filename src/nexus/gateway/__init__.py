"""The data plane: one light process per core that authenticates, limits, routes, balances, streams and counts.

Read it along a run: `server` (a client's connection) -> `stages` (the decisions, in order) -> `doors` (what each kind of
request does) -> `exchange` (bytes to and fro) -> `upstream` (pooled connections). `feed` keeps `routes` true.
"""
