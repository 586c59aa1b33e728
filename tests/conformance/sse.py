"""The linter of streams: each function takes a whole stream as bytes and returns what is wrong in it, one sentence each.

The rules are those of the APIs themselves: chunks of chat completions and of completions, events of Responses, events of
Messages, and Ollama's lines.
"""

import json

FINISH_REASONS = ("stop", "length", "tool_calls", "content_filter", "function_call")
STOP_REASONS = ("end_turn", "max_tokens", "stop_sequence", "tool_use", "pause_turn", "refusal")


class Findings(list):
    """Sentences; `must` adds one where a condition does not hold."""

    def must(self, holds, sentence):
        if not holds:
            self.append(sentence)
        return bool(holds)


def frames(stream, findings):
    """The events of a stream as pairs of name and data; a comment or an unknown field is a finding."""
    try:
        text = stream.decode()
    except UnicodeDecodeError as error:
        findings.append(f"not UTF-8: {error}")
        text = stream.decode(errors="replace")
    text = text.replace("\r\n", "\n")
    findings.must(text.endswith("\n\n"), "the last event has no empty line behind it")
    events = []
    for number, block in enumerate(text.split("\n\n")[:-1]):
        name, data = None, []
        for line in block.split("\n"):
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "data":
                data.append(value)
            elif field == "event":
                name = value
            else:
                findings.append(f"event {number} has the line {line!r}, at which strict clients stumble")
        if findings.must(len(data) == 1, f"event {number} has {len(data)} lines of data instead of one"):
            events.append((name, data[0]))
    return events


def _json(data, number, findings):
    try:
        value = json.loads(data)
    except ValueError as error:
        findings.append(f"event {number} is not JSON: {error}: {data[:80]!r}")
        return None
    return value if findings.must(isinstance(value, dict), f"event {number} is no object") else None


def _chunks(stream, findings, kind):
    """The chunks of a stream of OpenAI's older form, which ends with [DONE]."""
    events = frames(stream, findings)
    if findings.must(events and events[-1][1] == "[DONE]", "the stream does not end with [DONE]"):
        events.pop()
    chunks = []
    for number, (name, data) in enumerate(events):
        findings.must(name is None, f"event {number} is named {name!r}; OpenAI names none")
        findings.must(data != "[DONE]", f"event {number} is a [DONE] before the end")
        chunk = _json(data, number, findings)
        if chunk is None:
            continue
        if "error" in chunk:
            error = chunk["error"]
            good = isinstance(error, dict) and {"message", "type", "param", "code"} <= error.keys()
            findings.must(good, f"event {number}: the error is no envelope: {error!r}")
            findings.append(f"event {number} is an error: {error!r}")
            continue
        findings.must(chunk.get("object") == kind, f"event {number}: object is {chunk.get('object')!r}")
        chunks.append(chunk)
    for key in ("id", "created", "model"):
        values = {json.dumps(chunk.get(key)) for chunk in chunks}
        findings.must(len(values) <= 1 and "null" not in values, f"`{key}` is not one value: {sorted(values)}")
    return chunks


def _usage(chunks, findings, include_usage):
    """Checks where usage stands; the chunks that carry choices."""
    ends = [chunk for chunk in chunks if chunk.get("choices") == []]
    for number, chunk in enumerate(chunks):
        if chunk.get("choices") != []:
            if include_usage:
                findings.must("usage" in chunk and chunk["usage"] is None, f"chunk {number}: usage must be null before the end")
            else:
                findings.must(chunk.get("usage") is None, f"chunk {number} has usage, which nobody asked for")
    findings.must(len(ends) == (1 if include_usage else 0), f"{len(ends)} chunks have no choices")
    if ends:
        findings.must(chunks[-1] is ends[-1], "the chunk with usage is not the last one")
        usage = ends[-1].get("usage") or {}
        total = usage.get("prompt_tokens", 0) + usage.get("completion_tokens", 0)
        findings.must(usage.get("total_tokens") == total, f"total_tokens is {usage.get('total_tokens')!r}, not {total}")
    return [chunk for chunk in chunks if chunk.get("choices")]


def chat(stream, include_usage=False, choices=1):
    """A stream of `POST /v1/chat/completions`."""
    findings = Findings()
    chunks = _usage(_chunks(stream, findings, "chat.completion.chunk"), findings, include_usage)
    began, ended, calls = set(), set(), {}
    for number, chunk in enumerate(chunks):
        for choice in chunk["choices"]:
            index, delta = choice.get("index"), choice.get("delta")
            if not findings.must(isinstance(index, int), f"chunk {number}: index is {index!r}"):
                continue
            if not findings.must(isinstance(delta, dict), f"chunk {number}: delta is {delta!r}"):
                continue
            findings.must("finish_reason" in choice, f"chunk {number}: finish_reason is missing; it is null until the end")
            findings.must(index not in ended, f"chunk {number}: choice {index} goes on behind its end")
            if index in began:
                findings.must("role" not in delta, f"chunk {number}: the role of choice {index} is repeated")
            else:
                findings.must(delta.get("role") == "assistant", f"chunk {number}: choice {index} begins without its role")
                findings.must(delta.get("content") in (None, ""), f"chunk {number}: the first delta of choice {index} has text")
                findings.must(index == len(began), f"chunk {number}: choice {index} begins before choice {len(began)}")
                began.add(index)
            _tool_deltas(delta.get("tool_calls") or [], calls.setdefault(index, {}), number, findings)
            reason = choice.get("finish_reason")
            if reason is not None:
                findings.must(reason in FINISH_REASONS, f"chunk {number}: finish_reason is {reason!r}")
                findings.must(delta == {}, f"chunk {number}: the delta of the end is {delta!r}, not empty")
                forced = reason == "stop" and calls[index]
                findings.must(forced or (reason == "tool_calls") == bool(calls[index]) or reason == "length",
                              f"chunk {number}: finish_reason is {reason!r} after {len(calls[index])} calls")
                ended.add(index)
    findings.must(began == set(range(choices)), f"choices {sorted(began)} began of {choices}")
    findings.must(ended == began, f"choices {sorted(ended)} ended of {sorted(began)}")
    for index, of_choice in calls.items():
        for call, arguments in of_choice.items():
            _arguments(arguments, f"call {call} of choice {index}", findings)
    return findings


def _tool_deltas(deltas, calls, number, findings):
    indexes = [delta.get("index") for delta in deltas]
    findings.must(len(set(indexes)) == len(indexes), f"chunk {number}: two calls have one index")
    for delta in deltas:
        index, function = delta.get("index"), delta.get("function") or {}
        if not findings.must(isinstance(index, int), f"chunk {number}: the index of a call is {index!r}"):
            continue
        if index not in calls:
            findings.must(index == len(calls), f"chunk {number}: call {index} begins as number {len(calls)}")
            findings.must(delta.get("id") and delta.get("type") == "function" and function.get("name"),
                          f"chunk {number}: call {index} begins without id, type or name: {delta!r}")
            calls[index] = ""
        else:
            findings.must(not delta.get("id") and not function.get("name"), f"chunk {number}: call {index} begins again")
        calls[index] += function.get("arguments") or ""


def _arguments(arguments, whose, findings):
    try:
        findings.must(isinstance(json.loads(arguments), dict), f"the arguments of {whose} are no object: {arguments!r}")
    except ValueError:
        findings.append(f"the arguments of {whose} are not JSON: {arguments!r}")


def completions(stream, include_usage=False, choices=1):
    """A stream of `POST /v1/completions`."""
    findings = Findings()
    chunks = _usage(_chunks(stream, findings, "text_completion"), findings, include_usage)
    ended = []
    for number, chunk in enumerate(chunks):
        for choice in chunk["choices"]:
            findings.must(isinstance(choice.get("text"), str), f"chunk {number}: text is {choice.get('text')!r}")
            findings.must("finish_reason" in choice and "logprobs" in choice, f"chunk {number}: a key of the choice is missing")
            findings.must(choice.get("index") not in ended, f"chunk {number}: choice {choice.get('index')} goes on behind its end")
            if choice.get("finish_reason") is not None:
                findings.must(choice["finish_reason"] in FINISH_REASONS, f"chunk {number}: finish_reason {choice['finish_reason']!r}")
                ended.append(choice.get("index"))
    findings.must(sorted(ended) == list(range(choices)), f"choices {sorted(ended)} ended of {choices}")
    return findings


#: What an event of Responses must say of where it belongs.
PLACES = {
    "response.output_item.added": ("output_index", "item"),
    "response.output_item.done": ("output_index", "item"),
    "response.content_part.added": ("output_index", "content_index", "item_id", "part"),
    "response.content_part.done": ("output_index", "content_index", "item_id", "part"),
    "response.output_text.delta": ("output_index", "content_index", "item_id", "delta", "logprobs"),
    "response.output_text.done": ("output_index", "content_index", "item_id", "text", "logprobs"),
    "response.refusal.delta": ("output_index", "content_index", "item_id", "delta"),
    "response.refusal.done": ("output_index", "content_index", "item_id", "refusal"),
    "response.function_call_arguments.delta": ("output_index", "item_id", "delta"),
    "response.function_call_arguments.done": ("output_index", "item_id", "arguments", "name"),
    "response.reasoning_text.delta": ("output_index", "content_index", "item_id", "delta"),
    "response.reasoning_text.done": ("output_index", "content_index", "item_id", "text"),
    "response.reasoning_summary_part.added": ("output_index", "summary_index", "item_id", "part"),
    "response.reasoning_summary_part.done": ("output_index", "summary_index", "item_id", "part"),
    "response.reasoning_summary_text.delta": ("output_index", "summary_index", "item_id", "delta"),
    "response.reasoning_summary_text.done": ("output_index", "summary_index", "item_id", "text"),
}
RESPONSE_ENDS = ("response.completed", "response.incomplete", "response.failed")
RESPONSE_KEYS = (
    "id", "object", "created_at", "status", "error", "incomplete_details", "instructions", "metadata", "model", "output",
    "parallel_tool_calls", "temperature", "tool_choice", "tools", "top_p", "usage", "previous_response_id", "reasoning",
    "text", "truncation", "max_output_tokens",
)


def responses(stream):
    """A stream of `POST /v1/responses`."""
    findings = Findings()
    events = []
    for number, (name, data) in enumerate(frames(stream, findings)):
        if data == "[DONE]":
            findings.append("Responses has no [DONE]")
            continue
        event = _json(data, number, findings)
        if event is not None:
            findings.must(name == event.get("type"), f"event {number} is named {name!r} and says {event.get('type')!r}")
            findings.must(event.get("sequence_number") == number, f"event {number} has sequence_number {event.get('sequence_number')!r}")
            events.append(event)
    kinds = [event.get("type") for event in events]
    findings.must(kinds[:2] == ["response.created", "response.in_progress"], f"the stream begins with {kinds[:2]}")
    if not findings.must(kinds and kinds[-1] in RESPONSE_ENDS, f"the stream ends with {kinds[-1:]}"):
        return findings
    findings.must(sum(kind in RESPONSE_ENDS for kind in kinds) == 1, "the stream ends twice")
    for event in events[:2] + events[-1:]:
        response = event.get("response") or {}
        missing = [key for key in RESPONSE_KEYS if key not in response]
        findings.must(not missing, f"the response of {event['type']} lacks {missing}")
    identities = {(event.get("response") or {}).get("id") for event in events if "response" in event}
    findings.must(len(identities) == 1, f"the response has the ids {sorted(map(str, identities))}")
    items = _items(events[2:-1], findings)
    output = (events[-1].get("response") or {}).get("output")
    findings.must(output == [item for _, item in sorted(items.items())],
                  f"the output at the end is not what the items were: {json.dumps(output)[:200]}")
    return findings


def _items(events, findings):
    """Follows every item from its `added` to its `done`; the finished ones by their index."""
    open_items, done, gathered = {}, {}, {}
    for event in events:
        kind = event.get("type", "")
        if not findings.must(kind in PLACES, f"the event {kind!r} is not known"):
            continue
        missing = [key for key in PLACES[kind] if key not in event]
        if missing:
            findings.append(f"{kind} lacks {missing}")
            continue
        index = event["output_index"]
        if kind == "response.output_item.added":
            findings.must(index == len(open_items) + len(done), f"item {index} is added as number {len(open_items) + len(done)}")
            findings.must(event["item"].get("id"), f"item {index} has no id")
            open_items[index] = event["item"].get("id")
            continue
        if not findings.must(index in open_items, f"{kind} for item {index}, which is not open"):
            continue
        whose = event["item"].get("id") if "item" in event else event.get("item_id")
        findings.must(whose == open_items[index], f"{kind}: item {index} was {open_items[index]!r} and is {whose!r}")
        if kind == "response.output_item.done":
            _done_item(event["item"], findings)
            done[index] = event["item"]
            del open_items[index]
            continue
        place = (index, event.get("content_index", event.get("summary_index")), kind.rpartition(".")[0])
        if kind.endswith(".delta"):
            gathered[place] = gathered.get(place, "") + event["delta"]
        elif kind.endswith(".done") and "part" not in event:
            whole = event.get("text", event.get("arguments", event.get("refusal")))
            findings.must(whole == gathered.get(place, ""), f"{kind}: {whole!r} is not the sum of its deltas")
    findings.must(not open_items, f"the items {sorted(open_items)} are not done")
    return done


def _done_item(item, findings):
    kind = item.get("type")
    findings.must(item.get("status") in ("completed", "incomplete") or kind == "reasoning",
                  f"a done {kind} has the status {item.get('status')!r}")
    if kind == "reasoning":
        wrong = [part for part in item.get("summary") or [] if part.get("type") != "summary_text"]
        wrong += [part for part in item.get("content") or [] if part.get("type") != "reasoning_text"]
        findings.must(isinstance(item.get("summary"), list) and not wrong, f"thoughts have the parts {wrong!r} or no summary")
    elif kind == "function_call":
        findings.must(item.get("call_id") and item.get("name"), f"a call without call_id or name: {item!r}")
        _arguments(item.get("arguments", ""), item.get("name"), findings)
    elif kind == "message":
        for part in item.get("content") or []:
            if part.get("type") == "output_text":
                findings.must("annotations" in part and "logprobs" in part, f"a part without annotations or logprobs: {part!r}")


def messages(stream):
    """A stream of `POST /v1/messages`."""
    findings = Findings()
    events = []
    for number, (name, data) in enumerate(frames(stream, findings)):
        if data == "[DONE]":
            findings.append("Messages has no [DONE]")
            continue
        event = _json(data, number, findings)
        if event is not None:
            findings.must(name == event.get("type"), f"event {number} is named {name!r} and says {event.get('type')!r}")
            if event.get("type") != "ping":
                events.append(event)
    kinds = [event.get("type") for event in events]
    findings.must(kinds[:1] == ["message_start"], f"the stream begins with {kinds[:1]}")
    findings.must(kinds[-2:] == ["message_delta", "message_stop"], f"the stream ends with {kinds[-2:]}")
    if kinds[:1] != ["message_start"] or kinds[-2:] != ["message_delta", "message_stop"]:
        return findings
    message = events[0].get("message") or {}
    findings.must(message.get("role") == "assistant" and message.get("content") == [] and message.get("stop_reason", "") is None,
                  f"message_start is {message!r}")
    findings.must("input_tokens" in (message.get("usage") or {}), "message_start has no usage")
    delta, usage = events[-2].get("delta") or {}, events[-2].get("usage") or {}
    findings.must(delta.get("stop_reason") in STOP_REASONS and "stop_sequence" in delta, f"message_delta is {delta!r}")
    findings.must(isinstance(usage.get("output_tokens"), int), f"message_delta has the usage {usage!r}")
    used = _blocks(events[1:-2], findings)
    findings.must((delta.get("stop_reason") == "tool_use") == used, f"stop_reason is {delta.get('stop_reason')!r}, tools used: {used}")
    return findings


#: The deltas that a block of each type takes, and where their text stands.
DELTAS = {
    "text": {"text_delta": "text", "citations_delta": None},
    "thinking": {"thinking_delta": "thinking", "signature_delta": "signature"},
    "tool_use": {"input_json_delta": "partial_json"},
}


def _blocks(events, findings):
    """Follows the blocks of a message, one at a time and densely numbered; whether one uses a tool."""
    current, count, used, arguments = None, 0, False, ""
    for event in events:
        kind, index = event.get("type"), event.get("index")
        if kind == "content_block_start":
            block = event.get("content_block") or {}
            findings.must(current is None, f"block {index} begins within another")
            findings.must(index == count, f"block {index} begins as number {count}")
            findings.must(block.get("type") in DELTAS, f"block {index} is {block!r}")
            if block.get("type") == "tool_use":
                findings.must(block.get("id") and block.get("name") and block.get("input") == {}, f"block {index} is {block!r}")
                used = True
            current, count, arguments = block.get("type"), count + 1, ""
        elif kind == "content_block_delta":
            delta = event.get("delta") or {}
            findings.must(index == count - 1 and current is not None, f"a delta for block {index}, which is not open")
            known = DELTAS.get(current, {})
            if findings.must(delta.get("type") in known, f"a {current} block has the delta {delta!r}"):
                key = known[delta["type"]]
                findings.must(key is None or isinstance(delta.get(key), str), f"the delta {delta!r} has no {key}")
                arguments += delta.get("partial_json", "")
        elif kind == "content_block_stop":
            findings.must(index == count - 1 and current is not None, f"the end of block {index}, which is not open")
            if current == "tool_use":
                _arguments(arguments or "{}", f"block {index}", findings)
            current = None
        else:
            findings.append(f"the event {kind!r} within a message")
    findings.must(current is None, "the last block has no end")
    return used


def ollama(stream, key):
    """Lines of Ollama's `/api/chat` (`key` is "message") or `/api/generate` ("response")."""
    findings = Findings()
    findings.must(stream.endswith(b"\n"), "the last line has no end")
    lines = [_json(line, number, findings) for number, line in enumerate(stream.decode().splitlines())]
    lines = [line for line in lines if line is not None]
    for number, line in enumerate(lines):
        findings.must("error" not in line, f"line {number} is an error: {line.get('error')!r}")
        findings.must({"model", "created_at", "done"} <= line.keys(), f"line {number} lacks a key: {sorted(line)}")
        findings.must(key in line, f"line {number} has no `{key}`")
        findings.must(line.get("done") is (number == len(lines) - 1), f"line {number}: done is {line.get('done')!r}")
        if key == "message":
            message = line.get("message") or {}
            findings.must(message.get("role") == "assistant" and isinstance(message.get("content"), str),
                          f"line {number}: the message is {message!r}")
    if findings.must(lines, "there is no line"):
        counted = ("done_reason", "total_duration", "prompt_eval_count", "eval_count", "eval_duration", "load_duration")
        missing = [name for name in counted if name not in lines[-1]]
        findings.must(not missing, f"the last line lacks {missing}")
    return findings
