"""Codex CLI and Claude Code themselves, without a network, in folders of their own: a question, and one that takes a tool."""

import os
import pathlib
import subprocess
import tempfile

import harness
from harness import BASE, KEY, MODEL, URL, case

PROGRAMS = pathlib.Path(os.environ.get("CONFORMANCE_ENVIRONMENT", ".")) / "node_modules" / ".bin"
LIMIT = 120


def run(program, *arguments, **settings):
    home = tempfile.mkdtemp()
    # A sandbox takes a kernel that is not everywhere. Without one Codex asks for a search of the web, which nobody here runs.
    (pathlib.Path(home) / "config.toml").write_text(f"""
model = "{MODEL}"
model_provider = "host"
approval_policy = "never"
sandbox_mode = "danger-full-access"
web_search = "disabled"
analytics.enabled = false
[model_providers.host]
name = "host"
base_url = "{BASE}"
wire_api = "responses"
request_max_retries = 0
stream_max_retries = 0
""")
    # Nothing of the developer's: no keys, no folders, no settings.
    environment = {"PATH": os.environ["PATH"], "HOME": home, "CODEX_HOME": home, "IS_SANDBOX": "1", **settings}
    ran = subprocess.run([PROGRAMS / program, *arguments], cwd=home, env=environment, stdin=subprocess.DEVNULL,
                         capture_output=True, text=True, timeout=LIMIT)
    assert ran.returncode == 0, (ran.stdout + ran.stderr)[-300:]
    return ran.stdout


def claude(words):
    quiet = dict.fromkeys(("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY", "DISABLE_AUTOUPDATER", "DISABLE_ERROR_REPORTING"), "1")
    return run("claude", "-p", words, "--allowedTools", "Bash", ANTHROPIC_BASE_URL=URL, ANTHROPIC_API_KEY=KEY, ANTHROPIC_MODEL=MODEL,
               CLAUDE_CODE_MAX_RETRIES="0", **quiet)


def codex(words):
    return run("codex", "exec", "--skip-git-repo-check", words)


def answers(program):
    said = program("say: Good day to you.")
    assert not harness.SCRIPTED or "Good day to you." in said, said[-200:]


@case
def claude_code_answers():
    answers(claude)


@case(scripted=True)
def claude_code_runs_a_command():
    said = claude('call: Bash {"command":"echo of-the-$((40+2))","description":"Says it"}')
    assert "of-the-42" in said, said[-200:]


@case
def codex_answers():
    answers(codex)


@case(scripted=True)
def codex_runs_a_command():
    said = codex('call: exec_command {"cmd":"echo of-the-$((40+2))"}')
    assert "of-the-42" in said, said[-200:]


if __name__ == "__main__":
    harness.main("agents-cli")
