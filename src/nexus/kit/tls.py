"""TLS towards a host whose certificate is at hand: its file is trusted as it is, beside the system's own authorities."""

import ssl
from pathlib import Path


def trusting(certificate: Path, *, named: bool = True) -> ssl.SSLContext:
    """A client's context that believes the certificates in this PEM file, whoever signed them. Raises OSError.

    `named` False: the name in it is not compared with the address called (for a process of the same host, by address).
    """
    context = ssl.create_default_context()
    context.load_verify_locations(cafile=certificate)
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the file may hold the server's own certificate and no authority
    if not named:
        context.check_hostname = False
    return context
