"""The part of the WebSocket protocol (RFC 6455) that a client of ComfyUI needs: connect, receive, close."""

import base64
import os
import socket
import struct
from urllib.parse import urlsplit

TEXT, BINARY, CLOSE, PING, PONG = 1, 2, 8, 9, 10


class Closed(ConnectionError):
    """The server closed the connection."""


class WebSocket:
    def __init__(self, url: str, timeout: float | None = None):
        parts = urlsplit(url)
        self._socket = socket.create_connection((parts.hostname or "127.0.0.1", parts.port or 80), timeout)
        self._buffer = b""
        key = base64.b64encode(os.urandom(16)).decode()
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        self._socket.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = self._until(b"\r\n\r\n")
        if b" 101 " not in head.split(b"\r\n", 1)[0]:
            raise ConnectionError(f"{url} is not a websocket: {head.splitlines()[0].decode(errors='replace')}")

    def settimeout(self, seconds: float | None) -> None:
        self._socket.settimeout(seconds)

    def receive(self) -> str | bytes:
        """The next complete message: text as str, anything else as bytes. After a TimeoutError the stream is usable."""
        message, kind = b"", TEXT
        while True:
            final, code, payload = self._frame()
            if code == CLOSE:
                raise Closed("the server closed the connection")
            if code == PING:
                self._send(PONG, payload)
            elif code != PONG:
                kind = code or kind  # code 0 continues the message
                message += payload
                if final:
                    return message.decode() if kind == TEXT else message

    def close(self) -> None:
        try:
            self._send(CLOSE, b"")
        except OSError:
            pass  # the connection is closed already
        finally:
            self._socket.close()

    def _frame(self) -> tuple[bool, int, bytes]:
        """One frame. Nothing is removed from the buffer before the frame is complete."""
        self._fill(2)
        length, start = self._buffer[1] & 127, 2
        if length >= 126:
            start = 4 if length == 126 else 10
            self._fill(start)
            (length,) = struct.unpack(">H" if start == 4 else ">Q", self._buffer[2:start])
        self._fill(start + length)
        first, payload = self._buffer[0], self._buffer[start : start + length]
        self._buffer = self._buffer[start + length :]
        return bool(first & 128), first & 15, payload

    def _send(self, code: int, payload: bytes) -> None:
        mask = os.urandom(4)  # a client must mask; control frames are shorter than 126 bytes
        data = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
        self._socket.sendall(bytes([128 | code, 128 | len(payload)]) + mask + data)

    def _fill(self, size: int) -> None:
        while len(self._buffer) < size:
            chunk = self._socket.recv(65536)
            if not chunk:
                raise Closed("the server closed the connection")
            self._buffer += chunk

    def _until(self, end: bytes) -> bytes:
        while end not in self._buffer:
            self._fill(len(self._buffer) + 1)
        head, self._buffer = self._buffer.split(end, 1)
        return head
