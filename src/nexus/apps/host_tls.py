"""What the host knows of its own TLS certificate: where it is, and by which name the host should be called."""

from collections.abc import Mapping
from pathlib import Path

from nexus.core import errors


def read_certificate(environ: Mapping[str, str]) -> Path | None:
    """The certificate the gateways serve with, None without TLS. Raises Invalid (`setting.invalid`)."""
    given = {name: environ.get(name, "").strip() for name in ("NEXUS_TLS_CERT", "NEXUS_TLS_KEY")}
    if not any(given.values()):
        return None
    for name, text in given.items():
        if not (text and Path(text).is_absolute() and Path(text).is_file()):
            raise errors.Invalid(
                f"{name}={text[:200]!r} is not the absolute path of a file",
                code="setting.invalid",
                next_step="TLS needs NEXUS_TLS_CERT (a PEM chain) and NEXUS_TLS_KEY; set both, or neither",
            )
    return Path(given["NEXUS_TLS_CERT"])


def choose_name(certificate: Path, address: str) -> str:
    """What stands in the host's address: `address` where the certificate covers it, else the first name that it is for.

    Raises Invalid (`setting.invalid`) for a file that holds no certificate.
    """
    from cryptography import x509  # heavy, and wanted only where there is TLS

    try:
        found = x509.load_pem_x509_certificates(certificate.read_bytes())[0]
    except (OSError, ValueError, IndexError) as error:
        raise errors.Invalid(
            f"NEXUS_TLS_CERT={str(certificate)!r} holds no certificate",
            code="setting.invalid",
            cause=str(error)[:200],
            next_step="name a PEM file that begins with the host's own certificate",
        ) from error
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return address
    domains = [str(name) for name in names.get_values_for_type(x509.DNSName) if not name.startswith("*")]
    covered = {*domains, *(str(one) for one in names.get_values_for_type(x509.IPAddress))}
    return address if address in covered or not domains else domains[0]
