"""What Codex CLI and Claude Code send, from `fixtures/`: each answer by the linter, and by what the message asked for."""

import json

import harness
import raw
import sse
from harness import HERE, MODEL, SCRIPTED, case, equal


def replay(fixture, step):
    answer = raw.post(step["path"], {"model": MODEL, **step["body"]}, headers=fixture["headers"], seed=len(step["case"]))
    equal(answer.status, 200, answer.body[:300])
    if not step["body"].get("stream"):
        found = _of_json(answer.json())
    else:
        findings = getattr(sse, fixture["lint"])(answer.body)
        assert not findings, "; ".join(findings[:4])
        found = {"messages": _of_messages, "responses": _of_responses}[fixture["lint"]](answer.body)
    wanted = step["expect"]
    if SCRIPTED or "input_tokens" in wanted:
        equal({key: found.get(key) for key in wanted}, wanted)


def _of_json(body):
    if "input_tokens" in body:
        return {"input_tokens": body["input_tokens"] > 0}
    return {"text": "".join(block.get("text", "") for block in body["content"])}


def _events(stream):
    return [json.loads(data) for _, data in sse.frames(stream, sse.Findings())]


def _of_messages(stream):
    found, arguments = {"text": ""}, ""
    for event in _events(stream):
        delta = event.get("delta") or {}
        found["text"] += delta.get("text", "")
        arguments += delta.get("partial_json", "")
        if (event.get("content_block") or {}).get("type") == "tool_use":
            found["tool"] = event["content_block"]["name"]
    return {**found, "arguments": json.loads(arguments or "{}")}


def _of_responses(stream):
    found = {"text": ""}
    for item in _events(stream)[-1]["response"]["output"]:
        if item["type"] == "function_call":
            found.update(tool=item["name"], arguments=json.loads(item["arguments"]))
        elif item["type"] == "message":
            found["text"] += "".join(part.get("text", "") for part in item["content"])
    return found


for name in ("claude-code", "codex"):
    fixture = json.loads((HERE / "fixtures" / f"{name}.json").read_text())
    for step in fixture["steps"]:

        def of_step(fixture=fixture, step=step):
            replay(fixture, step)

        of_step.__name__ = f"{name}.{step['case']}"
        case(of_step)

if __name__ == "__main__":
    harness.main("agents-replay")
