"""Holds what candle-llm makes of many templates against transformers' own jinja2, and says which differ.

Needs transformers, and a build of plugins/candle-llm/examples/render.rs:

    cargo build -p aihost-candle-llm --example render
    python measure.py target/debug/examples/render LLAMA_CPP/models/templates

Twelve conversations by each template. A prompt is right if Python makes the same text of the conversation in one of the forms that
templates are known to want (generate.py), a plain one before all others, and if no call, argument or result is lost; or if Python refuses
every form and candle-llm does.
"""

import itertools
import json
import pathlib
import subprocess
import sys

from generate import HERE, _compile_jinja_template, shape

DATA = json.loads((HERE / "conversations.json").read_text())
TOOLS = DATA["tools"]
# By name: the conversation, whether with tools, and names beside the template's own.
CASES = {
    "question": ("question", False, {}),
    "system": ("system", False, {}),
    "question, tools": ("question", True, {}),
    "system, tools": ("system", True, {}),
    "call": ("call", True, {}),
    "call with text": ("call_with_text", True, {}),
    "two calls": ("two_calls", True, {}),
    "broken arguments": ("broken_arguments", True, {}),
    "calls without ids": ("without_ids", True, {}),
    "call, tools gone": ("call", False, {}),
    "no thinking": ("question", False, {"enable_thinking": False}),
    "effort": ("system", False, {"enable_thinking": True, "reasoning_effort": "high"}),
}
# What a conversation may be put into, the plain form first.
PLAIN = {"system": [None, "content"]}
WITH_TOOLS = {"tools": [None, "system", "content"]}
WITH_CALLS = {
    "calls": [None, "content"],
    "results": [None, "content"],
    "content": ["", None, ...],
    "arguments": [None, "text"],
    "other_arguments": [None, "wrapped"],
    "several": [None, "turns"],
    "beside_text": [None, "turns"],
    "ids": [None, "short"],
}


def forms(messages: list, tools: list):
    calls = any(message.get("tool_calls") for message in messages)
    choices = PLAIN | (WITH_TOOLS if tools else {}) | (WITH_CALLS if calls else {})
    all_forms = [dict(zip(choices, values)) for values in itertools.product(*choices.values())]
    plain = all_forms[0]
    # Those that are nearest to the plain form first.
    yield from sorted(all_forms, key=lambda form: sum(form[key] != plain[key] for key in form))


def shaped(messages: list, tools: list, form: dict) -> list:
    out = shape(json.loads(json.dumps(messages)), tools, {k: v for k, v in form.items() if v is not None or k == "content"})
    for message in out:
        if message.get("content", "") is ...:
            del message["content"]
    return out


def lost(messages: list, text: str) -> list:
    plain = text.replace("\\", "")
    needles = []
    for message in messages:
        if message["role"] == "tool":
            needles.append(message["content"])
        for call in message.get("tool_calls", []):
            needles.append(call["function"]["name"])
            needles += [part for part in call["function"]["arguments"].replace("\\", '"').split('"') if part.isalnum()]
    return [needle for needle in needles if needle.replace("\\", "") not in plain]


def judged(template, case, text: str | None) -> str:
    name, with_tools, arguments = CASES[case]
    messages, tools = DATA["conversations"][name], TOOLS if with_tools else []
    names = {"bos_token": "<s>", "eos_token": "</s>", "documents": None, "add_generation_prompt": True} | arguments
    if "enable_thinking" in arguments:
        names["thinking"] = arguments["enable_thinking"]
    refused, first = "", None
    for form in forms(messages, tools):
        own = tools if form.get("tools") != "content" else []
        try:
            expected = template.render(messages=shaped(messages, tools, form), tools=own or None, **names)
        except Exception as error:  # noqa: BLE001: whatever it is, there is no prompt
            refused = refused or f"{type(error).__name__}: {error}"
            continue
        if text is None:
            if not lost(messages, expected):
                return f"only Python renders it, in the form {({k: v for k, v in form.items() if v})}"
            continue
        if expected == text:
            return f"equal, but lost {lost(messages, text)}" if lost(messages, text) else "equal"
        first = first or expected
    if text is None:
        return "both refuse"
    if first is None:
        return f"only we render it; Python says {refused}"
    at = next((i for i, (a, b) in enumerate(zip(first, text)) if a != b), min(len(first), len(text)))
    return f"differs: {text[max(0, at - 40) : at + 60]!r} in place of {first[max(0, at - 40) : at + 60]!r}"


def main():
    program, folder = sys.argv[1], pathlib.Path(sys.argv[2])
    templates = {path.name: path.read_text() for path in sorted(folder.glob("*.jinja"))}
    cases = {}
    for case, (name, with_tools, arguments) in CASES.items():
        if "enable_thinking" in arguments:
            arguments = arguments | {"thinking": arguments["enable_thinking"]}
        cases[case] = {"messages": DATA["conversations"][name], "tools": TOOLS if with_tools else [], "arguments": arguments}
    asked = json.dumps({"templates": templates, "cases": cases})
    answered = subprocess.run([program], input=asked, capture_output=True, text=True, check=True)
    found = json.loads(answered.stdout)
    counts: dict = {}
    for name, source in templates.items():
        try:
            template = _compile_jinja_template(source)
        except Exception as error:  # noqa: BLE001: what does not parse here may there
            print(f"{name}: Python cannot parse it: {error}")
            continue
        for case in CASES:
            said = judged(template, case, found[name][case])
            kind = said.split(":")[0].split(",")[0].split(";")[0]
            counts[kind] = counts.get(kind, 0) + 1
            if kind not in ("equal", "both refuse") or said != kind:
                print(f"{name}, {case}: {said}")
    print(f"{len(templates)} templates, {sum(counts.values())} prompts: {counts}")


if __name__ == "__main__":
    main()
