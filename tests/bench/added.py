"""What the host adds to a request, a streamed token and a swap: one build, or two side by side in one run.

    cargo build --release -p aihost -p aihost-fixture-echo
    python3 tests/bench/added.py target/release [OTHER/target/release] [--rounds 5]

Each folder has `aihost` and `libfixture_echo.so` of one build. Two of them take turns, A B B A. A model that answers at once
stands for an engine, so what is measured is the host's. Prints medians and the least and most of the rounds.
"""

import argparse
import http.client
import json
import statistics
import time

import hosting

REQUESTS, STREAMS, STREAM_TOKENS, SWAPS = 600, 8, 8000, 80
FIGURES = [("request", "us"), ("token", "us"), ("request with its swap", "ms")]


class Echoes(hosting.Host):
    """Two echoes in one place."""

    def __init__(self, build):
        entry = "{type: text, plugin: aihost/echo, options: {memory: 1000000}}"
        yaml = f"devices: [{{id: cpu, max_loaded: 1}}]\ndefaults: {{quantum: 1ms}}\nmodels:\n  a: {entry}\n  b: {entry}\n"
        super().__init__(build, {"echo": "libfixture_echo.so"}, yaml)
        self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)

    def ask(self, model, prompt, **more):
        """Seconds until the whole answer is there."""
        body = json.dumps({"model": model, "messages": [{"role": "user", "content": prompt}], **more})
        begun = time.perf_counter()
        self.connection.request("POST", "/v1/chat/completions", body, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        text = answer.read()
        took = time.perf_counter() - begun
        if answer.status != 200:
            raise SystemExit(f"{answer.status}: {text[:300]!r}")
        return took

    def measure(self):
        words = "one two three"
        for _ in range(50):
            self.ask("a", words)
        request = statistics.median(self.ask("a", words) for _ in range(REQUESTS))
        stream = statistics.median(self.ask("a", "word " * STREAM_TOKENS, stream=True) for _ in range(STREAMS))
        swap = statistics.median(self.ask("ba"[n % 2], words) for n in range(SWAPS))
        return [request * 1e6, stream / STREAM_TOKENS * 1e6, swap * 1e3]


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("builds", nargs="+", help="one folder or two")
    arguments.add_argument("--rounds", type=int, default=5)
    asked = arguments.parse_args()
    hosts = [Echoes(build) for build in asked.builds[:2]]
    for host in hosts:
        host.measure()
    rounds = {host: [] for host in hosts}
    for _ in range(asked.rounds):
        for host in hosts + hosts[::-1]:
            rounds[host].append(host.measure())
    for at, (name, unit) in enumerate(FIGURES):
        medians = []
        for letter, host in zip("AB", hosts):
            values = [figures[at] for figures in rounds[host]]
            medians.append(statistics.median(values))
            print(f"{name} {letter}: {medians[-1]:.2f} {unit} ({min(values):.2f}-{max(values):.2f})")
        if len(medians) == 2:
            print(f"{name} B / A: {medians[1] / medians[0]:.3f}")
    for host in hosts:
        host.end()


if __name__ == "__main__":
    main()
