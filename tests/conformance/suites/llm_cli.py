"""The `llm` command line tool with a model of its `extra-openai-models.yaml`."""

import json
import os
import pathlib
import subprocess
import sys
import tempfile

import harness
from harness import BASE, KEY, LIMIT, MODEL, PERSON, SAY_PERSON, case

HOME = pathlib.Path(tempfile.mkdtemp())
(HOME / "extra-openai-models.yaml").write_text(f"""
- model_id: host
  model_name: {MODEL}
  api_base: {BASE}
  supports_schema: true
  supports_tools: true
- model_id: host-completion
  model_name: {MODEL}
  api_base: {BASE}
  completion: true
""")


def llm(*arguments):
    environment = {**os.environ, "LLM_USER_PATH": str(HOME), "OPENAI_API_KEY": KEY}
    ran = subprocess.run([sys.executable, "-m", "llm", *arguments], env=environment, stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, timeout=LIMIT)
    assert ran.returncode == 0, ran.stderr.strip().splitlines()[-1:]
    assert ran.stdout.strip(), "nothing was printed"
    return ran.stdout


@case
def prompt():
    llm("-m", "host", "-o", "max_tokens", "8", "Say one two.")


@case
def without_a_stream():
    llm("-m", "host", "--no-stream", "-o", "max_tokens", "8", "Say one two.")


@case
def completion():
    llm("-m", "host-completion", "-o", "max_tokens", "8", "One two")


@case
def a_conversation_goes_on():
    llm("-m", "host", "-o", "max_tokens", "8", "Say one.")
    llm("-c", "-o", "max_tokens", "8", "And two.")


@case
def schema():
    assert isinstance(json.loads(llm("-m", "host", "--schema", json.dumps(PERSON), SAY_PERSON)), dict)


@case(scripted=True)
def functions():
    function = 'def get_weather(city: str) -> str:\n    "The weather."\n    return "21 degrees in " + city'
    assert "21 degrees in Paris" in llm("-m", "host", "--functions", function, harness.CALL_WEATHER)


if __name__ == "__main__":
    harness.main("llm")
