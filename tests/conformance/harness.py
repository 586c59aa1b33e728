"""What the suites share: where the host is, how a case is written, how its result is told.

A case is a function marked with `@case`; it passes if it returns. A suite prints one line of JSON for each:
`{"suite", "case", "ok", "detail"}`, with `ok` null where the suite itself leaves a case out. `cargo xtask conformance`
starts the suites and reads these lines; what else they print goes to stderr. One alone:

    PYTHONPATH=tests/conformance CONFORMANCE_URL=http://127.0.0.1:9000 python tests/conformance/suites/wire.py
"""

import asyncio
import contextlib
import inspect
import json
import os
import pathlib
import sys
import traceback

HERE = pathlib.Path(__file__).parent
#: Where the host listens, without a path.
URL = os.environ.get("CONFORMANCE_URL", "http://127.0.0.1:9000")
#: Where OpenAI's routes begin.
BASE = URL + "/v1"
#: The model that is asked, and another name of it.
MODEL = os.environ.get("CONFORMANCE_MODEL", "gpt-4o")
OTHER = os.environ.get("CONFORMANCE_OTHER_MODEL", "gpt-4o-mini")
#: echo, candle-llm, upstream or llama-server.
ENGINE = os.environ.get("CONFORMANCE_ENGINE", "echo")
#: Whether the model does what the lines of a message say (the options of `tests/plugins/echo`).
SCRIPTED = ENGINE in ("echo", "upstream")
#: Folder of this suite's unpacked source, if it has one.
SOURCE = pathlib.Path(os.environ.get("CONFORMANCE_SOURCE", "."))
#: A key that a host without keys takes, as it takes any.
KEY = "sk-conformance"
#: Seconds that one answer may take.
LIMIT = 60

_cases = []


def case(function=None, *, scripted=False):
    """Makes a function a case; `scripted` ones need a model that does what it is told."""
    if function is None:
        return lambda function: case(function, scripted=scripted)
    _cases.append((function, scripted))
    return function


def main(suite):
    """Runs the cases of this module, or those whose name contains an argument."""
    wanted = sys.argv[1:]
    for function, scripted in _cases:
        if wanted and not any(word in function.__name__ for word in wanted):
            continue
        if scripted and not SCRIPTED:
            tell(suite, function.__name__, None, "needs a model that does what it is told")
            continue
        with contextlib.redirect_stdout(sys.stderr):
            ok, detail = _result_of(function)
        tell(suite, function.__name__, ok, detail)


def _result_of(function):
    try:
        if inspect.iscoroutinefunction(function):
            asyncio.run(asyncio.wait_for(function(), 2 * LIMIT))
        else:
            function()
    except Exception as error:  # a case fails by whatever it raises
        line = next((frame.lineno for frame in reversed(traceback.extract_tb(error.__traceback__))
                     if "suites" in frame.filename), 0)
        return False, f"line {line}: {type(error).__name__}: {error}"
    return True, ""


def tell(suite, name, ok, detail=""):
    """Prints a result; the detail is one line of at most 400 characters."""
    line = {"suite": suite, "case": name, "ok": ok, "detail": " ".join(str(detail).split())[:400]}
    print(json.dumps(line), flush=True)


def run_pytest(suite, folder, arguments, strip="", plugins=()):
    """Runs pytest in `folder` and tells each test as a case, its name without `strip`."""
    import pytest

    results = {}

    class Collector:
        def pytest_runtest_logreport(self, report):
            seen = results.get(report.nodeid)
            if report.failed:
                results[report.nodeid] = (False, _last_line(report.longreprtext))
            elif report.skipped:
                reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else "expected to fail"
                results[report.nodeid] = (None, reason)
            elif seen is None and report.when == "call":
                results[report.nodeid] = (True, "")

        def pytest_collectreport(self, report):
            if report.failed:
                results[report.nodeid] = (False, _last_line(report.longreprtext))

    os.chdir(folder)
    with contextlib.redirect_stdout(sys.stderr):
        # Python's own tracebacks: pytest's parse every file anew for each failed test, and generated ones are long.
        quiet = ["-q", "--no-header", "-p", "no:cacheprovider", "--tb=native"]
        pytest.main([*quiet, *arguments], plugins=[Collector(), *plugins])
    for name, (ok, detail) in results.items():
        tell(suite, name.removeprefix(strip), ok, detail)


def _last_line(text):
    """What was raised, of a traceback."""
    lines = text.strip().splitlines()
    at = max((number for number, line in enumerate(lines) if line.startswith("  File")), default=-2)
    return " ".join(line for line in lines[at + 1 :] if not line.startswith(" ")) or (lines or [""])[-1]


def equal(left, right, what=""):
    """Fails with both values."""
    assert left == right, f"{left!r} is not {right!r}" + (f": {what}" if what else "")


def raises(kind, function, **wanted):
    """The error of this class that `function` raises, whose attributes are these."""
    try:
        function()
    except kind as error:
        for name, value in wanted.items():
            equal(getattr(error, name), value, name)
        return error
    raise AssertionError(f"{kind.__name__} was not raised")


#: A tool in the form of chat completions.
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
#: What a scripted model is told so that it calls that tool.
CALL_WEATHER = 'call: get_weather {"city":"Paris"}'
#: A schema, and what a scripted model is told so that it answers in it.
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
SAY_PERSON = 'say: {"name":"Ada","age":36}'
