"""Anthropic's SDK for Python against `/v1/messages`: answers, streams, tools, thinking, tokens, errors."""

import anthropic

import harness
from harness import CALL_WEATHER, KEY, LIMIT, MODEL, URL, WEATHER, case, equal, raises

CLIENT = anthropic.Anthropic(base_url=URL, api_key=KEY, timeout=LIMIT, max_retries=0)
USER = [{"role": "user", "content": "Say one two three."}]
GREEDY = {"temperature": 0}
TOOL = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": WEATHER["function"]["parameters"],
}


def create(words=None, **more):
    messages = USER if words is None else [{"role": "user", "content": words}]
    return CLIENT.messages.create(**{"model": MODEL, "max_tokens": 16, "messages": messages, "extra_body": GREEDY, **more})


@case
def a_message_is_answered():
    message = create()
    equal((message.type, message.role, message.content[0].type), ("message", "assistant", "text"))
    assert message.id.startswith("msg_") and message.stop_reason in ("end_turn", "max_tokens")
    assert message.usage.input_tokens > 0 and message.usage.output_tokens > 0


@case
def a_stream_is_the_whole_message():
    whole = create()
    with CLIENT.messages.stream(model=MODEL, max_tokens=16, messages=USER, extra_body=GREEDY) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    equal((text, final.stop_reason), (whole.content[0].text, whole.stop_reason))
    equal(final.usage.output_tokens, whole.usage.output_tokens)


@case
def the_system_prompt_has_parts():
    system = [{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}]
    assert create(system=system).content


@case
def content_has_parts():
    assert create([{"type": "text", "text": "Say one.", "cache_control": {"type": "ephemeral"}}]).content


@case(scripted=True)
def a_stop_sequence_is_named():
    message = create("say: one two three", stop_sequences=["two"])
    equal((message.stop_reason, message.stop_sequence), ("stop_sequence", "two"))


@case(scripted=True)
def the_limit_is_told():
    equal(create("say: one two three four", max_tokens=2).stop_reason, "max_tokens")


@case(scripted=True)
def a_tool_is_used():
    message = create(CALL_WEATHER, tools=[TOOL])
    use = message.content[-1]
    equal((use.type, use.name, use.input, message.stop_reason), ("tool_use", "get_weather", {"city": "Paris"}, "tool_use"))


@case(scripted=True)
def a_tool_is_used_in_a_stream():
    body = {"model": MODEL, "max_tokens": 64, "tools": [TOOL], "messages": [{"role": "user", "content": "say: Well.\n" + CALL_WEATHER}]}
    with CLIENT.messages.stream(**body) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_message()
    equal([block.type for block in final.content], ["text", "tool_use"])
    equal((final.content[1].input, kinds.count("content_block_stop")), ({"city": "Paris"}, 2))


@case(scripted=True)
def a_tools_result_is_read():
    use = {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}}
    result = {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "21 degrees"}]}
    messages = [
        {"role": "user", "content": CALL_WEATHER},
        {"role": "assistant", "content": [use]},
        {"role": "user", "content": [result]},
    ]
    equal(create(messages=messages, tools=[TOOL]).content[0].text, "21 degrees")


@case
def a_forced_tool_is_used():
    for choice in ({"type": "any"}, {"type": "tool", "name": "get_weather"}):
        message = create("The weather in Paris?", tools=[TOOL], tool_choice=choice, max_tokens=64)
        equal(message.content[-1].type, "tool_use")


@case(scripted=True)
def thinking_is_a_block():
    thinking = {"type": "enabled", "budget_tokens": 1024}
    message = create("think: Let me see.\nsay: Done.", thinking=thinking, max_tokens=2048)
    equal([block.type for block in message.content], ["thinking", "text"])
    equal((message.content[0].thinking, message.content[1].text), ("Let me see.", "Done."))


@case
def tokens_are_counted():
    counted = CLIENT.messages.count_tokens(model=MODEL, messages=USER).input_tokens
    usage = create().usage
    equal(counted, usage.input_tokens + (usage.cache_read_input_tokens or 0))


@case
def an_unknown_beta_is_ignored():
    assert CLIENT.beta.messages.create(model=MODEL, max_tokens=8, messages=USER, betas=["context-1m-2025-08-07"]).content


@case
def errors_have_their_classes():
    error = raises(anthropic.NotFoundError, lambda: create(model="no-such"))
    equal(error.body["error"]["type"], "not_found_error")
    error = raises(anthropic.BadRequestError, lambda: create(extra_body={"temperature": 7}))
    equal(error.body["error"]["type"], "invalid_request_error")
    assert error.request_id or error.body.get("request_id"), error.body
    raises(anthropic.BadRequestError, lambda: create(messages=[]))
    raises(anthropic.BadRequestError, lambda: CLIENT.post("/v1/messages", cast_to=object, body={"model": MODEL, "messages": USER}))


@case
def models_are_listed():
    assert [model.id for model in CLIENT.models.list()]


if __name__ == "__main__":
    harness.main("anthropic")
