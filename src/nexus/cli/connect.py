"""The client a command uses, opened where it is needed."""

from nexus import client


def open_client() -> client.Client:
    """The client for `NEXUS_URL`/`NEXUS_API_KEY`, `nexus login`, or the host on this machine."""
    return client.Client()
