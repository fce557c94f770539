"""Streams of bytes that only their two ends can read: AES-GCM, record by record, in order.

A cluster's engine carries them, logs what it likes, and spills it to its disks."""

from __future__ import annotations

KEY_BYTES = 32
_HEAD = 4
#: A record has at most so many bytes, so that its reader knows what it waits for.
_MAX_RECORD = 1 << 20


class SealedStream:
    """One end of a stream of bytes that only its two ends can read: AES-GCM, record by record, in
    order. Each direction counts its records: none can be left out, or come twice.

    A cluster's engine carries it, logs what it likes, and spills it to its disks.
    """

    def __init__(self, key: bytes, *, daemon: bool) -> None:
        """``daemon``: whether this is its end; the worker's is the other one."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM  # of an extra

        self._cipher = AESGCM(key)
        self._going, self._coming = (b"down", b"up  ") if daemon else (b"up  ", b"down")
        self._sent = self._received = 0
        self._buffer = bytearray()

    def seal(self, data: bytes) -> bytes:
        """Return bytes as they go through strange hands."""
        records = bytearray()
        for start in range(0, len(data), _MAX_RECORD):
            nonce = self._going + self._sent.to_bytes(8, "big")
            record = self._cipher.encrypt(nonce, data[start : start + _MAX_RECORD], None)
            records += len(record).to_bytes(_HEAD, "big") + record
            self._sent += 1
        return bytes(records)

    def open(self, data: bytes) -> bytes:
        """Return what the other end sent, as far as it has come whole.

        Raises ``ConnectionError`` for what it did not.
        """
        from cryptography.exceptions import InvalidTag  # of an extra

        self._buffer += data
        found = bytearray()
        while len(self._buffer) >= _HEAD:
            size = int.from_bytes(self._buffer[:_HEAD], "big")
            if size > _MAX_RECORD + 64:
                raise ConnectionError(f"a record of {size:,} bytes came, which is none")
            if len(self._buffer) < _HEAD + size:
                break
            nonce = self._coming + self._received.to_bytes(8, "big")
            try:
                found += self._cipher.decrypt(
                    nonce, bytes(self._buffer[_HEAD : _HEAD + size]), None
                )
            except InvalidTag as error:
                raise ConnectionError("a record came that its worker did not send") from error
            del self._buffer[: _HEAD + size]
            self._received += 1
        return bytes(found)
