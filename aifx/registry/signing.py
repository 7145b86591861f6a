"""Keys and signatures of evidence: ECDSA in PEM files, and envelopes as DSSE has them.

An envelope holds bytes, their type, and signatures over both
(https://github.com/secure-systems-lab/dsse/blob/v1.0.2/envelope.md). One without signatures is allowed: then nobody
vouches for the bytes.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aifx.core.digests import sha256_of
from aifx.core.errors import DataError, EnvironmentFault, UsageError
from aifx.core.extras import install_command
from aifx.core.files import read_input
from aifx.core.json_files import cannot_write, encode
from aifx.core.json_values import encode_json
from aifx.core.os_errors import naming
from aifx.core.parsing import parse_json
from aifx.core.results import Result

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey, EllipticCurvePublicKey

CURVES = ("P-256", "P-384", "P-521")
_CURVES = ("secp256r1", "secp384r1", "secp521r1")
"""The same as the library calls them."""

TYPE = "application/vnd.aifx.registry+json"


@dataclass(frozen=True)
class NewKey(Result):
    """The document of `aifx registry keygen`.

    Attributes:
        id: of the public key, which signatures have.
    """

    private: str
    public: str
    curve: str
    id: str


@dataclass(frozen=True)
class Signature:
    """Attributes:
    keyid: of the public key (`key_id`); a hint only, as DSSE has it.
    sig: base64 of an ECDSA signature in DER.
    """

    keyid: str
    sig: str


@dataclass(frozen=True)
class Envelope:
    """A JSON value, and who signed it."""

    content: Any
    signatures: tuple[Signature, ...] = ()

    def encode(self) -> bytes:
        """The bytes of the envelope: always the same for the same envelope."""
        signatures = [{"keyid": one.keyid, "sig": one.sig} for one in self.signatures]
        payload = base64.b64encode(payload_of(self.content)).decode()
        return encode(encode_json({"payload": payload, "payloadType": TYPE, "signatures": signatures}) + "\n")

    def signers(self, keys: Mapping[str, str]) -> list[str]:
        """Whose signatures are right.

        Args:
            keys: PEM of each person's public key, by the person's name.
        """
        if not self.signatures:
            return []
        from cryptography.exceptions import InvalidSignature

        signed, found = _signed_bytes(payload_of(self.content)), []
        for name, pem in keys.items():
            key = read_public_key(pem, name)
            for one in self.signatures:
                try:
                    key.verify(base64.b64decode(one.sig, validate=True), signed, _algorithm(key))
                except (InvalidSignature, ValueError):  # ValueError: no base64
                    continue
                found.append(name)
                break
        return found


def parse_envelope(data: bytes, place: str) -> Envelope:
    """The envelope with these bytes. Raises DataError naming the place."""
    try:
        doc = parse_json(data)
        if doc["payloadType"] != TYPE:
            raise ValueError(f"its type is {doc['payloadType']!r}")
        signatures = tuple(Signature(str(one["keyid"]), str(one["sig"])) for one in doc["signatures"])
        envelope = Envelope(parse_json(base64.b64decode(doc["payload"], validate=True)), signatures)
        if envelope.encode() != data:
            raise ValueError("its bytes are not those that were written")
    except (ValueError, KeyError, TypeError) as e:
        raise DataError(f"{place} is no evidence", f"{e}", "aifx registry verify") from e
    return envelope


def sign(content: Any, key: Path | None) -> Envelope:
    """A JSON value, signed with the private key in a PEM file; unsigned without one. Raises UsageError."""
    if key is None:
        return Envelope(content)
    private = read_private_key(key)
    data = private.sign(_signed_bytes(payload_of(content)), _algorithm(private))
    return Envelope(content, (Signature(key_id(public_pem(private)), base64.b64encode(data).decode()),))


def payload_of(content: Any) -> bytes:
    """A JSON value as the bytes that are signed."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _signed_bytes(payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding, so that no bytes of one type pass for those of another."""
    return b"DSSEv1 %d %s %d %s" % (len(TYPE), TYPE.encode(), len(payload), payload)


def write_key(path: Path, curve: str) -> str:
    """Write a new private key to a file that only its owner can read, and the public one beside it. Returns its id.

    Args:
        path: of the private key; the public one is `path` with ".pub".
        curve: of `CURVES`.

    Raises UsageError for a file that is there: a key cannot be made again.
    """
    _need_cryptography()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    if curve not in CURVES:
        raise UsageError(f"--curve {curve} is no curve", f"one of {', '.join(CURVES)}", "--curve P-256")
    curves = {"P-256": ec.SECP256R1(), "P-384": ec.SECP384R1(), "P-521": ec.SECP521R1()}
    private = ec.generate_private_key(curves[curve])
    pem = private.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    public = path.with_name(f"{path.name}.pub")
    for file, data, mode in ((path, pem, 0o600), (public, public_pem(private).encode(), 0o644)):
        try:
            with naming(file), open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as out:
                out.write(data)
        except FileExistsError:
            what, why = f"{file} is there already", "a key cannot be made again"
            raise UsageError(what, why, f"ls -l {file}, or another name") from None
        except OSError as e:
            raise cannot_write(file, e) from e
    return key_id(public_pem(private))


def read_given(path: Path) -> bytes:
    """The content of a file that the user named. Raises UsageError if it cannot be read."""
    try:
        return read_input(path)
    except OSError as e:
        raise UsageError(f"could not read {path}", e.strerror or str(e), f"ls -l {path}") from e


def read_private_key(path: Path) -> EllipticCurvePrivateKey:
    """The private key in a PEM file. Raises UsageError for a file that holds none of the curves."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    hint = f"aifx registry keygen {path}"
    try:
        key = load_pem_private_key(read_given(path), None)
    except (ValueError, TypeError) as e:
        raise UsageError(f"{path} is no private key", str(e).splitlines()[0], hint) from e
    if not isinstance(key, EllipticCurvePrivateKey) or key.curve.name not in _CURVES:
        raise UsageError(f"{path} is no ECDSA key", f"keys are of {', '.join(CURVES)}", hint)
    return key


def read_public_key(pem: str, name: str) -> EllipticCurvePublicKey:
    """A public key. Raises DataError naming whose it should be."""
    _need_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(pem.encode())
    except ValueError as e:
        raise DataError(f"the key of {name} is no public key", str(e).splitlines()[0], "aifx registry keygen") from e
    if not isinstance(key, EllipticCurvePublicKey) or key.curve.name not in _CURVES:
        raise DataError(f"the key of {name} is no ECDSA key", f"of {', '.join(CURVES)}", "aifx registry keygen")
    return key


def public_pem(private: EllipticCurvePrivateKey) -> str:
    from cryptography.hazmat.primitives import serialization

    encoding, form = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    return private.public_key().public_bytes(encoding, form).decode()


def key_id(pem: str) -> str:
    """The id of a public key: the beginning of the SHA-256 of its PEM."""
    return sha256_of(pem.strip())[:16]


def _algorithm(key: EllipticCurvePrivateKey | EllipticCurvePublicKey) -> Any:
    """ECDSA with the digest of the curve's strength (FIPS 186-5)."""
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec

    kinds: Sequence[tuple[int, Any]] = ((256, hashes.SHA256), (384, hashes.SHA384), (521, hashes.SHA512))
    return ec.ECDSA(dict(kinds)[key.curve.key_size]())


def _need_cryptography() -> None:
    """Raise EnvironmentFault if the package of the extra is missing."""
    from importlib.util import find_spec

    if find_spec("cryptography") is None:
        raise EnvironmentFault("cryptography is not installed", "signatures need it", install_command("signing"))
