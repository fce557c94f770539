"""The daemon's certificate towards other machines: a key of its own, known by a fingerprint."""

from __future__ import annotations

import datetime as dt
import hashlib
import ssl
from dataclasses import dataclass
from pathlib import Path

from batchd.errors import NotPossibleError
from batchd.spool import files

#: Names in the state directory.
_KEY, _CERTIFICATE = "join-key.pem", "join-certificate.pem"
#: Who joins goes by the fingerprint alone: the dates mean nothing.
_DAYS = 36_500


@dataclass(frozen=True, slots=True)
class DaemonCertificate:
    """The certificate and key that prove who the daemon is."""

    key: Path
    certificate: Path
    #: SHA-256 over the certificate's DER form, in hexadecimal digits.
    fingerprint: str

    def context(self) -> ssl.SSLContext:
        """Return how connections are accepted.

        Raises ``NotPossibleError`` where the key is not the certificate's.
        """
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        try:
            # A password would be asked for on the terminal.
            context.load_cert_chain(self.certificate, self.key, password="")
        except FileNotFoundError as error:
            raise NotPossibleError(_keyless(self, "is not there")) from error
        except (OSError, ssl.SSLError) as error:
            what = getattr(error, "reason", None) or str(error)
            another = what == "KEY_VALUES_MISMATCH"
            why = "is another one's" if another else f"cannot be used: {what}"
            raise NotPossibleError(_keyless(self, why)) from error
        return context


def identity(state: Path) -> DaemonCertificate:
    """Return the daemon's identity, made where there is none. Raises ``NotPossibleError``."""
    key, certificate = state / _KEY, state / _CERTIFICATE
    try:
        if not certificate.exists():
            _make(key, certificate)
        der = ssl.PEM_cert_to_DER_cert(certificate.read_text("ascii"))
    except (OSError, ValueError) as error:
        raise NotPossibleError(_unusable(certificate, error)) from error
    return DaemonCertificate(key, certificate, hashlib.sha256(der).hexdigest())


def _make(key: Path, certificate: Path) -> None:
    """Make a key and a certificate, the certificate last: where it is, the key is whole."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        why = "[pool] listen needs the extra `cluster`, which is not installed"
        raise NotPossibleError(f"{why}: install `batchd[cluster]`") from None
    secret = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "batchd")])
    now = dt.datetime.now(dt.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(secret.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(days=1))
        .not_valid_after(now + dt.timedelta(days=_DAYS))
        .sign(secret, hashes.SHA256())
    )
    form = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    _write(key, secret.private_bytes(serialization.Encoding.PEM, *form))
    _write(certificate, made.public_bytes(serialization.Encoding.PEM))


def _write(path: Path, data: bytes) -> None:
    """Write a file that only batchd's user reads."""
    files.write_whole(path, lambda file: file.write(data), replace=True, mode=0o600)


def _keyless(known: DaemonCertificate, why: str) -> str:
    """Return that the key does not go with the certificate, and the fix."""
    fix = f"put it back from a backup, or remove both, {known.certificate.name} too: batchd makes others then, with another fingerprint"
    return f"{known.key}, the key of {known.certificate.name}, {why}: {fix}"


def _unusable(certificate: Path, error: Exception) -> str:
    fix = f"remove {certificate}, and batchd makes another, with another fingerprint"
    return f"{certificate} cannot be used: {error}; {fix}"
