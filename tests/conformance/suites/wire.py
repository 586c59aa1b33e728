"""Every API's streams by the linter, and answers and errors as they are on the wire; no client library between."""

import json

import harness
import raw
import sse
from harness import CALL_WEATHER, MODEL, WEATHER, case, equal

USER = [{"role": "user", "content": "Say one two three."}]
CHAT = "/v1/chat/completions"


def stream(path, body, lint, seeds=range(5), **more):
    """Asks several times, read in pieces of other sizes each time, and lints each answer."""
    for seed in seeds:
        answer = raw.post(path, {"model": MODEL, "stream": True, **body}, seed=seed, headers=more)
        equal(answer.status, 200, answer.body[:300])
        assert not answer.is_cut, "the body has no end"
        wanted = "application/x-ndjson" if path.startswith("/api/") else "text/event-stream"
        assert answer.headers.get("content-type", "").startswith(wanted), answer.headers.get("content-type")
        findings = lint(answer.body)
        assert not findings, "; ".join(findings[:4])
    return answer


def asked(words):
    """A conversation of one message of these words."""
    return [{"role": "user", "content": words}]


@case
def chat_stream():
    answer = stream(CHAT, {"messages": USER, "max_tokens": 8}, sse.chat)
    assert answer.headers.get("cache-control") in ("no-cache", "no-store"), answer.headers


@case
def chat_stream_with_usage():
    body = {"messages": USER, "max_tokens": 8, "stream_options": {"include_usage": True}}
    stream(CHAT, body, lambda text: sse.chat(text, include_usage=True))


@case
def chat_stream_of_several_choices():
    stream(CHAT, {"messages": USER, "max_tokens": 8, "n": 3}, lambda text: sse.chat(text, choices=3))


@case
def chat_stream_with_logprobs():
    stream(CHAT, {"messages": USER, "max_tokens": 8, "logprobs": True, "top_logprobs": 2}, sse.chat)


@case(scripted=True)
def chat_stream_of_a_tool_call():
    answer = stream(CHAT, {"messages": asked(CALL_WEATHER), "tools": [WEATHER]}, sse.chat)
    assert b'"tool_calls"' in answer.body, "no call in the answer"


@case(scripted=True)
def chat_stream_of_two_calls_with_text_and_reasoning():
    words = f"think: Where?\nsay: One moment.\n{CALL_WEATHER}\n{CALL_WEATHER}"
    answer = stream(CHAT, {"messages": asked(words), "tools": [WEATHER]}, sse.chat)
    assert b"reasoning_content" in answer.body and b'"index":1' in answer.body, answer.body[-600:]


@case(scripted=True)
def chat_stream_of_a_refusal():
    answer = stream(CHAT, {"messages": asked("refuse: I will not.")}, sse.chat)
    assert b'"refusal"' in answer.body, answer.body[-600:]


@case
def chat_stream_keeps_characters_whole():
    stream(CHAT, {"messages": asked("é 日本語 🎉👩‍👩‍👧 ẞ"), "max_tokens": 24}, sse.chat)


@case
def chat_stream_that_cannot_begin_is_a_status():
    answer = raw.post(CHAT, {"model": "no-such", "messages": USER, "stream": True})
    equal(answer.status, 404)
    equal(answer.json()["error"]["code"], "model_not_found")


@case
def completions_stream():
    stream("/v1/completions", {"prompt": "One two", "max_tokens": 4}, sse.completions)


@case
def completions_stream_of_two_prompts_with_usage():
    body = {"prompt": ["One two", "Three four"], "n": 2, "max_tokens": 4, "stream_options": {"include_usage": True}}
    stream("/v1/completions", body, lambda text: sse.completions(text, include_usage=True, choices=4))


@case
def responses_stream():
    stream("/v1/responses", {"input": "Say one two three.", "max_output_tokens": 16}, sse.responses)


@case(scripted=True)
def responses_stream_of_a_call_with_text_and_reasoning():
    tool = {"type": "function", **WEATHER["function"], "strict": False}
    words = f"think: Where?\nsay: One moment.\n{CALL_WEATHER}"
    answer = stream("/v1/responses", {"input": words, "tools": [tool]}, sse.responses)
    for kind in (b"response.function_call_arguments.delta", b"response.reasoning", b"response.output_text.delta"):
        assert kind in answer.body, f"no {kind}"


@case(scripted=True)
def responses_stream_of_a_summary():
    body = {"input": "think: Where?\nsay: Here.", "reasoning": {"summary": "auto"}}
    answer = stream("/v1/responses", body, sse.responses)
    for kind in (b"reasoning_summary_part.added", b"reasoning_summary_text.delta", b"reasoning_summary_part.done"):
        assert kind in answer.body, f"no {kind}"
    assert b"reasoning_text" not in answer.body, answer.body[-600:]


@case(scripted=True)
def responses_stream_of_a_refusal():
    answer = stream("/v1/responses", {"input": "refuse: I will not."}, sse.responses)
    assert b"response.refusal.delta" in answer.body, answer.body[-600:]


@case(scripted=True)
def responses_stream_that_is_cut_is_incomplete():
    answer = stream("/v1/responses", {"input": "say: " + "word " * 50, "max_output_tokens": 16}, sse.responses)
    assert b'"max_output_tokens"' in answer.body and b"event: response.incomplete" in answer.body, answer.body[-300:]


@case
def messages_stream():
    body = {"messages": USER, "max_tokens": 16}
    stream("/v1/messages", body, sse.messages, **{"anthropic-version": "2023-06-01"})


@case(scripted=True)
def messages_stream_of_a_call_with_text_and_thinking():
    tool = {"name": "get_weather", "input_schema": WEATHER["function"]["parameters"]}
    words = f"think: Where?\nsay: One moment.\n{CALL_WEATHER}"
    body = {"messages": asked(words), "tools": [tool], "max_tokens": 2048, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    answer = stream("/v1/messages", body, sse.messages, **{"anthropic-version": "2023-06-01"})
    for kind in (b"thinking_delta", b"input_json_delta", b"text_delta"):
        assert kind in answer.body, f"no {kind}"


@case
def ollama_chat_stream():
    stream("/api/chat", {"messages": USER, "options": {"num_predict": 8}}, lambda text: sse.ollama(text, "message"))


@case
def ollama_generate_stream():
    stream("/api/generate", {"prompt": "Say one two", "options": {"num_predict": 8}}, lambda text: sse.ollama(text, "response"))


@case
def every_error_is_an_envelope():
    deep = b"[" * 100000
    wrong = [
        ("POST", CHAT, b"{", 400),
        ("POST", CHAT, b"[]", 400),
        ("POST", CHAT, b"", 400),
        ("POST", CHAT, deep, 400),
        ("POST", CHAT, b'{"model": 7, "messages": []}', 400),
        ("POST", CHAT, json.dumps({"model": MODEL, "messages": []}).encode(), 400),
        ("POST", CHAT, json.dumps({"model": MODEL}).encode(), 400),
        ("POST", CHAT, json.dumps({"model": MODEL, "messages": USER, "temperature": 3}).encode(), 400),
        ("POST", CHAT, json.dumps({"model": MODEL, "messages": USER, "n": "2"}).encode(), 400),
        ("POST", CHAT, json.dumps({"model": MODEL, "messages": [{"role": "nobody", "content": "x"}]}).encode(), 400),
        ("GET", "/v1/models/no-such", None, 404),
        ("GET", "/v1/files", None, 404),
        ("GET", CHAT, None, 405),
        ("TRACE", CHAT, None, 405),
        ("QUERY", CHAT, None, 405),
        ("DELETE", "/v1/models", None, 405),
    ]
    for method, path, body, status in wrong:
        answer = raw.ask(method, path, body)
        what = f"{method} {path} {(body or b'')[:60]!r}"
        equal(answer.status, status, what)
        assert answer.headers.get("content-type", "").startswith("application/json"), what
        error = answer.json()["error"]
        assert {"message", "type", "param", "code"} <= error.keys(), f"{what}: {error}"
        assert error["message"] and isinstance(error["type"], str), f"{what}: {error}"
        assert answer.headers.get("x-request-id"), f"{what}: no x-request-id"
        assert status != 405 or answer.headers.get("allow"), f"{what}: no Allow"


@case
def every_answer_has_its_headers():
    for method, path, body in [("GET", "/v1/models", None), ("POST", CHAT, {"model": MODEL, "messages": USER, "max_tokens": 4})]:
        answer = raw.ask(method, path, body, headers={"x-request-id": "mine-7"})
        equal(answer.status, 200, answer.body[:200])
        equal(answer.headers.get("x-request-id"), "mine-7", path)
        assert float(answer.headers.get("openai-processing-ms", "none")) >= 0, path
        equal(answer.headers.get("openai-version"), "2020-10-01", path)


@case
def errors_of_messages_have_their_form():
    answer = raw.post("/v1/messages", {"model": "no-such", "messages": USER, "max_tokens": 4})
    equal(answer.status, 404)
    body = answer.json()
    equal((body["type"], body["error"]["type"]), ("error", "not_found_error"))
    assert isinstance(body["error"]["message"], str)


@case
def errors_of_ollama_are_texts():
    answer = raw.post("/api/chat", {"model": "no-such", "messages": USER})
    equal(answer.status, 404)
    assert isinstance(answer.json()["error"], str), answer.body


@case
def the_root_answers_as_ollama_does():
    answer = raw.ask("GET", "/")
    equal((answer.status, answer.body), (200, b"Ollama is running"))
    equal(raw.ask("HEAD", "/").status, 200)


@case
def slashes_too_many_are_served():
    for path in ("/v1/chat/completions/", "//v1/chat/completions", "/v1//chat/completions"):
        equal(raw.post(path, {"model": MODEL, "messages": USER, "max_tokens": 2}).status, 200, path)
    equal(raw.ask("GET", "/v1/models/").status, 200)


@case
def compressed_bodies_are_read():
    import gzip

    body = json.dumps({"model": MODEL, "messages": USER, "max_tokens": 2}).encode()
    equal(raw.ask("POST", CHAT, gzip.compress(body), headers={"content-encoding": "gzip"}).status, 200)
    equal(raw.ask("POST", CHAT, body, headers={"content-encoding": "br"}).status, 415)


@case
def an_expected_continue_is_answered():
    body = {"model": MODEL, "messages": USER, "max_tokens": 2}
    status = raw.post(CHAT, body, headers={"expect": "100-continue"}).status
    assert status in (100, 200), status


@case
def models_tell_their_facts():
    models = raw.ask("GET", "/v1/models").json()["data"]
    equal(sorted({model["object"] for model in models}), ["model"])
    for model in models:
        missing = [key for key in ("id", "created", "owned_by", "context_length", "max_model_len", "meta") if key not in model]
        assert not missing, f"{model.get('id')} lacks {missing}"


@case
def tokens_and_back():
    answer = raw.post("/tokenize", {"model": MODEL, "content": "Say one two"})
    equal(answer.status, 200, answer.body[:200])
    tokens = answer.json()["tokens"]
    back = raw.post("/detokenize", {"model": MODEL, "tokens": tokens})
    equal(back.json().get("content", back.json().get("prompt")), "Say one two")
    other = raw.post("/tokenize", {"model": MODEL, "prompt": "Say one two", "add_special_tokens": False}).json()
    equal((other["count"], other["tokens"]), (len(tokens), tokens))


@case
def input_tokens_are_what_usage_says():
    whole = raw.post(CHAT, {"model": MODEL, "messages": USER, "max_tokens": 1}).json()["usage"]["prompt_tokens"]
    for path, body, key in [
        ("/v1/chat/completions/input_tokens", {"messages": USER}, "input_tokens"),
        ("/v1/responses/input_tokens", {"input": USER[0]["content"]}, "input_tokens"),
        ("/v1/messages/count_tokens", {"messages": USER}, "input_tokens"),
    ]:
        answer = raw.post(path, {"model": MODEL, **body})
        equal(answer.status, 200, path)
        equal(answer.json()[key], whole, path)


@case
def running_models_are_listed():
    equal(raw.ask("GET", "/running").status, 200)
    equal(raw.ask("GET", "/props?model=" + MODEL).status, 200)


@case
def half_a_character_is_told_clearly():
    answer = raw.ask("POST", CHAT, b'{"model":"' + MODEL.encode() + b'","messages":[{"role":"user","content":"\\ud83d x"}]}')
    if answer.status != 200:
        equal(answer.status, 400)
        message = answer.json()["error"]["message"]
        assert "surrogate" in message, message


if __name__ == "__main__":
    harness.main("wire")
