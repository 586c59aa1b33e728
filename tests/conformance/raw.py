"""HTTP over a bare socket, read in pieces of random size: what a client library would mend or hide is seen here."""

import dataclasses
import json
import random
import socket
import urllib.parse

from harness import LIMIT, URL


@dataclasses.dataclass
class Answer:
    """A whole answer: its status, its headers in lower case, its body with chunks joined."""

    status: int
    headers: dict
    body: bytes
    #: Whether the body was cut off: neither the last chunk nor its length was reached.
    is_cut: bool = False

    def json(self):
        return json.loads(self.body)


def ask(method, path, body=None, headers=None, seed=0):
    """Asks and reads to the end; the sizes of reads follow from `seed`."""
    chance = random.Random(seed)
    address = urllib.parse.urlsplit(URL)
    payload = b"" if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
    head = {"host": address.netloc, "connection": "close", "content-length": str(len(payload))}
    if body is not None:
        head["content-type"] = "application/json"
    head.update(headers or {})
    lines = "".join(f"{name}: {value}\r\n" for name, value in head.items())
    with socket.create_connection((address.hostname, address.port), timeout=LIMIT) as connection:
        connection.sendall(f"{method} {path} HTTP/1.1\r\n{lines}\r\n".encode() + payload)
        received = b""
        while piece := connection.recv(chance.choice((1, 2, 3, 7, 64, 4096))):
            received += piece
    head, _, rest = received.partition(b"\r\n\r\n")
    status, *fields = head.decode("latin-1").split("\r\n")
    headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
    chunked = "chunked" in headers.get("transfer-encoding", "")
    text, is_cut = _dechunk(rest) if chunked else (rest, len(rest) < int(headers.get("content-length", 0)))
    return Answer(int(status.split(" ")[1]), headers, text, is_cut and method != "HEAD")


def post(path, body, **more):
    """A POST of JSON."""
    return ask("POST", path, body, **more)


def _dechunk(rest):
    text = b""
    while rest:
        size, _, rest = rest.partition(b"\r\n")
        length = int(size.split(b";")[0] or b"0", 16)
        if length == 0:
            return text, False
        text, rest = text + rest[:length], rest[length + 2 :]
    return text, True
