"""Who is at the other end of a QUIC connection: the certificate that binds its TLS key to a libp2p identity."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives.asymmetric.types import PrivateKeyTypes
from cryptography.hazmat.primitives.serialization import load_pem_private_key
from cryptography.x509 import Certificate, load_pem_x509_certificate
from libp2p.crypto.keys import KeyPair
from libp2p.peer.id import ID
from libp2p.security.tls.certificate import create_cert_template, generate_certificate, verify_certificate_chain
from libp2p.transport.exceptions import SecurityUpgradeFailure

ALPN: Final = "libp2p"

Chain = Sequence[Certificate]
Prove = Callable[[Chain, ID | None], ID]
"""Tells who showed a chain of certificates; raises SecurityUpgradeFailure for nobody, or not the peer expected."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """A TLS key that lives as long as the node, and the certificate in which the node's own key vouches for it."""

    certificate: Certificate
    key: PrivateKeyTypes

    @classmethod
    def new(cls, key_pair: KeyPair) -> "Credentials":
        """Make a TLS key and have `key_pair` vouch for it."""
        certificate, key = generate_certificate(key_pair.private_key, create_cert_template())
        return cls(load_pem_x509_certificate(certificate.encode()), load_pem_private_key(key.encode(), None))


def peer_of(chain: Chain) -> ID:
    """Tell whose key vouches for the TLS key of a certificate. That the other end has the TLS key, TLS has seen to.

    Raises:
        SecurityUpgradeFailure: No certificate, several, or a false one.
    """
    try:
        return ID.from_pubkey(verify_certificate_chain(list(chain)))
    except Exception as error:  # a stranger wrote it: anything may come out of the parsers
        raise SecurityUpgradeFailure(f"no proof of identity: {error}") from error
