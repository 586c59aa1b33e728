"""openai-python as programs use it: chat, streams, tools, completions, responses, models, errors. Runs under 2.x and 3.x."""

import asyncio

import openai

import harness
from harness import BASE, CALL_WEATHER, KEY, LIMIT, MODEL, PERSON, SAY_PERSON, WEATHER, case, equal, raises

CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, timeout=LIMIT, max_retries=0)
ASYNC = lambda: openai.AsyncOpenAI(base_url=BASE, api_key=KEY, timeout=LIMIT, max_retries=0)
USER = [{"role": "user", "content": "Say one two three."}]


def chat(words=None, **more):
    messages = USER if words is None else [{"role": "user", "content": words}]
    return CLIENT.chat.completions.create(**{"model": MODEL, "messages": messages, "max_tokens": 16, **more})


@case
def chat_answers():
    answer = chat()
    choice = answer.choices[0]
    assert choice.message.content and choice.finish_reason in ("stop", "length")
    equal(answer.usage.total_tokens, answer.usage.prompt_tokens + answer.usage.completion_tokens)
    assert answer._request_id


@case
def a_stream_is_the_whole_answer():
    whole = chat(temperature=0)
    chunks = list(chat(temperature=0, stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    equal(text, whole.choices[0].message.content)
    equal(chunks[-1].usage.model_dump(), whole.usage.model_dump())


@case
def the_stream_helper_gathers():
    with CLIENT.chat.completions.stream(model=MODEL, messages=USER, max_tokens=8) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert {"chunk", "content.delta", "content.done"} <= kinds, kinds
    assert final.choices[0].message.content


@case
async def many_at_once():
    async with ASYNC() as client:
        answers = await asyncio.gather(
            *(client.chat.completions.create(model=MODEL, messages=USER, max_tokens=4) for _ in range(8))
        )
    equal(len(answers), 8)


@case
def several_choices():
    equal([choice.index for choice in chat(n=3, max_tokens=4).choices], [0, 1, 2])


@case(scripted=True)
def stops_before_a_stop_string():
    answer = chat("say: one two three", stop=["two"])
    equal((answer.choices[0].message.content, answer.choices[0].finish_reason), ("one ", "stop"))


@case(scripted=True)
def ends_at_the_limit():
    equal(chat("say: one two three four", max_completion_tokens=2).choices[0].finish_reason, "length")


@case
def logprobs_join_to_the_text():
    choice = chat(logprobs=True, top_logprobs=2, max_tokens=6).choices[0]
    equal("".join(entry.token for entry in choice.logprobs.content), choice.message.content)
    assert all(len(entry.top_logprobs) == 2 and entry.logprob <= 0 for entry in choice.logprobs.content)


@case
def seeds_repeat():
    answers = [chat(seed=7, temperature=1).choices[0].message.content for _ in range(2)]
    equal(answers[0], answers[1])


@case
def developer_and_parts_are_read():
    messages = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    assert chat(messages=messages).choices[0].message.content is not None


@case
def a_picture_for_a_model_of_text_is_refused():
    part = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    error = raises(openai.BadRequestError, lambda: chat(messages=[{"role": "user", "content": [part]}]))
    assert error.param and error.param.startswith("messages"), error.param


@case(scripted=True)
def a_tool_is_called():
    choice = chat(CALL_WEATHER, tools=[WEATHER]).choices[0]
    call = choice.message.tool_calls[0]
    equal((call.function.name, call.function.arguments), ("get_weather", '{"city":"Paris"}'))
    equal(choice.finish_reason, "tool_calls")


@case(scripted=True)
def a_tool_is_called_in_a_stream():
    with CLIENT.chat.completions.stream(model=MODEL, messages=[{"role": "user", "content": CALL_WEATHER}], tools=[WEATHER]) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert "tool_calls.function.arguments.done" in kinds, kinds
    equal(final.choices[0].message.tool_calls[0].function.arguments, '{"city":"Paris"}')


@case(scripted=True)
def a_tools_result_is_read():
    call = {"id": "call_0", "type": "function", "function": {"name": "get_weather", "arguments": '{"city":"Paris"}'}}
    messages = [
        {"role": "user", "content": CALL_WEATHER},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_0", "content": "21 degrees"},
    ]
    equal(chat(messages=messages, tools=[WEATHER]).choices[0].message.content, "21 degrees")


@case
def no_tool_is_called_where_that_is_forbidden():
    assert not chat(tools=[WEATHER], tool_choice="none").choices[0].message.tool_calls


@case
def a_forced_tool_is_called():
    named = {"type": "function", "function": {"name": "get_weather"}}
    for choice in ("required", named):
        message = chat("The weather in Paris?", tools=[WEATHER], tool_choice=choice, max_tokens=64).choices[0].message
        equal(message.tool_calls[0].function.name, "get_weather")


@case(scripted=True)
def reasoning_comes_beside_the_answer():
    message = chat("think: Let me see.\nsay: Done.").choices[0].message
    equal((message.content, message.model_extra.get("reasoning_content")), ("Done.", "Let me see."))


@case(scripted=True)
def a_refusal_is_no_content():
    message = chat("refuse: I will not.").choices[0].message
    equal((message.content, message.refusal), (None, "I will not."))


@case
def a_schema_is_kept():
    schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    import json

    answer = chat(SAY_PERSON, response_format=schema, max_tokens=64)
    equal(set(json.loads(answer.choices[0].message.content)), {"name", "age"})


@case
def a_class_is_parsed():
    import pydantic

    class Person(pydantic.BaseModel):
        name: str
        age: int

    messages = [{"role": "user", "content": SAY_PERSON}]
    answer = CLIENT.chat.completions.parse(model=MODEL, messages=messages, response_format=Person, max_tokens=64)
    assert isinstance(answer.choices[0].message.parsed, Person)


@case
def completions_of_every_prompt():
    for prompt, count in (("One", 1), (["One", "Two"], 2), ([1, 2, 3], 1), ([[1, 2], [3]], 2)):
        answer = CLIENT.completions.create(model=MODEL, prompt=prompt, max_tokens=4)
        equal([choice.index for choice in answer.choices], list(range(count)), prompt)


@case
def completions_echo_their_prompt():
    answer = CLIENT.completions.create(model=MODEL, prompt="One two", max_tokens=2, echo=True)
    assert answer.choices[0].text.startswith("One two"), answer.choices[0].text


@case
def completions_stream():
    assert list(CLIENT.completions.create(model=MODEL, prompt="One two", max_tokens=4, stream=True))


@case
def models_are_listed_and_retrieved():
    names = [model.id for model in CLIENT.models.list()]
    assert names
    equal(CLIENT.models.retrieve(names[0]).id, names[0])
    assert CLIENT.models.retrieve(MODEL).object == "model"


@case
def errors_have_their_classes():
    error = raises(openai.NotFoundError, lambda: chat(model="no-such"), code="model_not_found", param="model")
    assert error.request_id
    raises(openai.BadRequestError, lambda: chat(temperature=5), param="temperature")
    raises(openai.NotFoundError, lambda: CLIENT.models.retrieve("no-such"))
    raises(openai.NotFoundError, lambda: CLIENT.files.list())
    raises(openai.BadRequestError, lambda: chat(tools=[WEATHER], tool_choice={"type": "function", "function": {"name": "no"}}))


@case
def raw_headers_are_there():
    answer = CLIENT.chat.completions.with_raw_response.create(model=MODEL, messages=USER, max_tokens=4)
    assert answer.headers["x-request-id"] and answer.headers["openai-processing-ms"]
    assert answer.parse().choices


@case
def responses_answer():
    answer = CLIENT.responses.create(model=MODEL, input="Say one two.", max_output_tokens=16)
    assert answer.output_text and answer.status in ("completed", "incomplete")
    equal(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens)


@case
def responses_stream():
    with CLIENT.responses.stream(model=MODEL, input="Say one two.", max_output_tokens=16) as stream:
        kinds = [event.type for event in stream]
        final = stream.get_final_response()
    assert "response.output_text.delta" in kinds and final.output_text


@case(scripted=True)
def responses_call_a_tool_and_read_its_result():
    tool = {"type": "function", "strict": True, **WEATHER["function"]}
    first = CLIENT.responses.create(model=MODEL, input=CALL_WEATHER, tools=[tool])
    call = first.output[-1]
    equal((call.type, call.name, call.arguments), ("function_call", "get_weather", '{"city":"Paris"}'))
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21 degrees"}
    second = CLIENT.responses.create(model=MODEL, input=[{"role": "user", "content": CALL_WEATHER}, call.to_dict(), result], tools=[tool])
    equal(second.output_text, "21 degrees")


@case(scripted=True)
def responses_follow_a_stored_one():
    first = CLIENT.responses.create(model=MODEL, input="say: one")
    second = CLIENT.responses.create(model=MODEL, input="say: two", previous_response_id=first.id)
    equal((second.output_text, second.previous_response_id), ("two", first.id))
    raises(openai.BadRequestError, lambda: CLIENT.responses.create(model=MODEL, input="x", previous_response_id="resp_no"))


@case
def responses_keep_a_schema():
    import json

    form = {"format": {"type": "json_schema", "name": "person", "schema": PERSON, "strict": True}}
    answer = CLIENT.responses.create(model=MODEL, input=SAY_PERSON, text=form, max_output_tokens=64)
    equal(set(json.loads(answer.output_text)), {"name", "age"})


if __name__ == "__main__":
    harness.main("openai-client")
