"""What the host adds on the way to an engine that speaks HTTP: one client, and 64 streams at once.

    cargo build --release -p aihost -p aihost-vllm -p aihost-fixture-stand-in
    python3 tests/bench/proxied.py target/release [OTHER/target/release] [--rounds 5] [--requests-only]

The same engine is asked at its own port and through the host, A B B A; two builds take turns as well. A request is a small POST over
one connection that is kept open; a stream is an event every 10 ms that says when it was sent, so that its lag is known. Prints medians
of the rounds, and the least and most of them.
"""

import argparse
import json
import os
import selectors
import socket
import statistics
import time

import hosting

REQUESTS, STREAMS, SECONDS = 1000, 64, 4.0


class Engine(hosting.Host):
    """The stand-in, which has a port of its own beside the way through the host."""

    def __init__(self, build):
        self.engine = hosting.free_port()
        command = json.dumps([os.path.abspath(os.path.join(build, "fixture_stand_in")), "--port", "{port}"])
        entry = f"{{type: custom, endpoint: /v1/far, command: {command}, port: {self.engine}, memory: 64MiB, upstream_routes: true}}"
        super().__init__(build, {"vllm": "libvllm.so"}, f"models:\n  far: {entry}\n")


def connect(port):
    client = socket.create_connection(("127.0.0.1", port), timeout=60)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return client


def requests(port, path):
    """Microseconds of each request."""
    client, body = connect(port), b'{"model": "far"}'
    head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    sent, times = head.encode() + body, []
    for _ in range(REQUESTS):
        begun = time.perf_counter()
        client.sendall(sent)
        answer = b""
        while b"\r\n\r\n" not in answer:
            answer += client.recv(65536)
        head, _, rest = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head:
            raise SystemExit(answer)
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        while len(rest) < length:
            rest += client.recv(65536)
        times.append((time.perf_counter() - begun) * 1e6)
    client.close()
    return sorted(times)


def streams(port, path):
    """Milliseconds that each event was on its way."""
    selector, lags = selectors.DefaultSelector(), []
    for _ in range(STREAMS):
        client = connect(port)
        client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        client.setblocking(False)
        selector.register(client, selectors.EVENT_READ)
    begun = time.monotonic()
    while (now := time.monotonic()) < begun + SECONDS:
        for key, _ in selector.select(1):
            piece, heard = key.fileobj.recv(65536), time.time_ns()
            if now < begun + 1:
                continue
            for line in piece.split(b"\n"):
                if line.startswith(b"data: ") and len(line) > 12:
                    lags.append((heard - int(line[6:])) / 1e6)
    for key in list(selector.get_map().values()):
        key.fileobj.close()
    return sorted(lags)


def at(values, share):
    return values[min(len(values) - 1, int(len(values) * share))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("builds", nargs="+", help="one folder or two")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests-only", action="store_true", help="no streams, which take 8 s a round")
    arguments = parser.parse_args()
    hosts = [Engine(build) for build in arguments.builds[:2]]
    names = [("request p50, us", 0), ("request p99, us", 1), ("64 streams p50, ms", 2), ("64 streams p99, ms", 3)]
    if arguments.requests_only:
        names = names[:2]
    arms = [(host, port, path) for host in hosts for port, path in [(host.engine, ""), (host.port, "/upstream/far")]]
    found = [[] for _ in arms]
    try:
        for host in hosts:
            requests(host.port, "/upstream/far/v1/x")
        for round_ in range(arguments.rounds):
            order = list(range(len(arms)))
            for arm in order if round_ % 2 == 0 else reversed(order):
                _, port, prefix = arms[arm]
                asked = requests(port, prefix + "/v1/x")
                lagged = streams(port, prefix + "/clock") if len(names) > 2 else [0]
                found[arm].append([at(asked, 0.5), at(asked, 0.99), at(lagged, 0.5), at(lagged, 0.99)])
    finally:
        for host in hosts:
            host.end()
    for letter, direct, through in zip("AB", found[::2], found[1::2]):
        print(f"| {letter} | direct | through the host | added |\n|---|---|---|---|")
        for name, column in names:
            values = [sorted(row[column] for row in rows) for rows in (direct, through)]
            shown = " | ".join(f"{statistics.median(v):.2f} ({v[0]:.2f}-{v[-1]:.2f})" for v in values)
            added = statistics.median(b[column] - a[column] for a, b in zip(direct, through))
            print(f"| {name} | {shown} | {added:.2f} |")


if __name__ == "__main__":
    main()
