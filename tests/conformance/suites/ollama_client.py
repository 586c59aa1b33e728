"""Ollama's client for Python, and its REST routes as its documentation writes them."""

import ollama

import harness
import raw
from harness import CALL_WEATHER, LIMIT, MODEL, PERSON, SAY_PERSON, URL, WEATHER, case, equal, raises

CLIENT = ollama.Client(host=URL, timeout=LIMIT)
USER = [{"role": "user", "content": "Say one two three."}]
FEW = {"num_predict": 16, "temperature": 0}


def chat(words=None, **more):
    messages = USER if words is None else [{"role": "user", "content": words}]
    return CLIENT.chat(**{"model": MODEL, "messages": messages, "options": FEW, **more})


@case
def chat_answers():
    answer = chat()
    equal((answer.message.role, answer.done), ("assistant", True))
    assert answer.message.content and answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count > 0 and answer.eval_count > 0 and answer.total_duration > 0


@case
def a_stream_is_the_whole_answer():
    pieces = list(chat(stream=True))
    equal("".join(piece.message.content or "" for piece in pieces), chat().message.content)
    equal([piece.done for piece in pieces], [False] * (len(pieces) - 1) + [True])


@case
def generate_answers():
    answer = CLIENT.generate(model=MODEL, prompt="Say one two.", options=FEW)
    assert answer.response and answer.done
    text = "".join(piece.response for piece in CLIENT.generate(model=MODEL, prompt="Say one two.", options=FEW, stream=True))
    equal(text, answer.response)


@case
def an_empty_prompt_loads():
    answer = CLIENT.generate(model=MODEL, prompt="", keep_alive="5m")
    equal((answer.response, answer.done, answer.done_reason), ("", True, "load"))


@case(scripted=True)
def a_tool_is_called():
    call = chat(CALL_WEATHER, tools=[WEATHER]).message.tool_calls[0]
    equal((call.function.name, dict(call.function.arguments)), ("get_weather", {"city": "Paris"}))


@case(scripted=True)
def a_tools_result_is_read():
    call = {"function": {"name": "get_weather", "arguments": {"city": "Paris"}}}
    messages = [
        {"role": "user", "content": CALL_WEATHER},
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_name": "get_weather", "content": "21 degrees"},
    ]
    equal(chat(messages=messages, tools=[WEATHER]).message.content, "21 degrees")


@case(scripted=True)
def thinking_comes_beside_the_answer():
    message = chat("think: Let me see.\nsay: Done.", think=True).message
    equal((message.thinking, message.content), ("Let me see.", "Done."))


@case
def a_format_is_kept():
    import json

    for form in ("json", PERSON):
        assert isinstance(json.loads(chat(SAY_PERSON, format=form, options={"num_predict": 64}).message.content), dict)


@case
def models_are_listed_and_shown():
    names = [model.model for model in CLIENT.list().models]
    assert names
    shown = CLIENT.show(names[0])
    assert "completion" in shown.capabilities, shown
    assert any(key.endswith(".context_length") for key in shown.modelinfo), shown.modelinfo


@case
def a_running_model_is_told():
    chat()
    assert [model.model for model in CLIENT.ps().models]


@case
def a_model_that_is_not_there_is_404():
    error = raises(ollama.ResponseError, lambda: chat(model="no-such"), status_code=404)
    assert "no-such" in error.error and not error.error.startswith("{"), error.error


@case
def a_name_may_have_its_latest_tag():
    assert chat(model=MODEL + ":latest").message.content


@case
def version_and_root_answer():
    assert raw.ask("GET", "/api/version").json()["version"]
    equal(raw.ask("HEAD", "/").status, 200)


@case
def an_embedding_of_a_text_model_is_refused_as_a_text():
    answer = raw.post("/api/embed", {"model": MODEL, "input": "x"})
    assert 400 <= answer.status < 500 and isinstance(answer.json()["error"], str), answer.body


@case
def streams_are_the_default():
    answer = raw.post("/api/chat", {"model": MODEL, "messages": USER, "options": FEW})
    assert answer.headers["content-type"].startswith("application/x-ndjson"), answer.headers
    answer = raw.post("/api/chat", {"model": MODEL, "messages": USER, "options": FEW, "stream": False})
    assert answer.headers["content-type"].startswith("application/json"), answer.headers
    assert answer.json()["done"] is True


@case
def bad_requests_are_texts():
    for path, body in [
        ("/api/chat", b"{"),
        ("/api/chat", b"[]"),
        ("/api/chat", b'{"messages": []}'),
        ("/api/generate", b'{"model": 7}'),
    ]:
        answer = raw.ask("POST", path, body)
        equal(answer.status, 400, f"{path} {body!r}")
        assert isinstance(answer.json()["error"], str), answer.body


if __name__ == "__main__":
    harness.main("ollama")
