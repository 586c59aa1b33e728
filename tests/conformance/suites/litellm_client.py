"""LiteLLM, as a library: every provider of its that speaks an API of this host."""

import os

os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"

import litellm

import harness
from harness import BASE, CALL_WEATHER, KEY, LIMIT, MODEL, PERSON, SAY_PERSON, URL, WEATHER, case, equal, raises

USER = [{"role": "user", "content": "Say one two three."}]


def complete(provider="openai", words=None, base=BASE, **more):
    messages = USER if words is None else [{"role": "user", "content": words}]
    settings = {"api_base": base, "api_key": KEY, "timeout": LIMIT, "num_retries": 0, "max_tokens": 32}
    return litellm.completion(model=f"{provider}/{MODEL}", messages=messages, **{**settings, **more})


@case
def chat():
    assert complete().choices[0].message.content


@case
def stream():
    pieces = list(complete(stream=True, stream_options={"include_usage": True}))
    assert "".join(piece.choices[0].delta.content or "" for piece in pieces if piece.choices)


@case
async def acompletion():
    answer = await litellm.acompletion(model=f"openai/{MODEL}", messages=USER, api_base=BASE, api_key=KEY, max_tokens=8)
    assert answer.choices[0].message.content


@case
def text_completion():
    answer = litellm.text_completion(model=f"text-completion-openai/{MODEL}", prompt="One", api_base=BASE, api_key=KEY, max_tokens=4)
    assert answer.choices[0].text


@case(scripted=True)
def a_tool_is_called():
    call = complete(words=CALL_WEATHER, tools=[WEATHER]).choices[0].message.tool_calls[0]
    equal((call.function.name, call.function.arguments), ("get_weather", '{"city":"Paris"}'))


@case
def a_forced_tool():
    assert complete(words="The weather in Paris?", tools=[WEATHER], tool_choice="required").choices[0].message.tool_calls


@case
def a_schema():
    import json

    form = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    assert json.loads(complete(words=SAY_PERSON, response_format=form).choices[0].message.content)


@case(scripted=True)
def reasoning():
    message = complete(words="think: Let me see.\nsay: Done.").choices[0].message
    equal((message.reasoning_content, message.content), ("Let me see.", "Done."))


@case
def an_unknown_model():
    raises(litellm.NotFoundError, lambda: litellm.completion(model="openai/no-such", messages=USER, api_base=BASE, api_key=KEY, num_retries=0))


@case
def a_bad_request():
    raises(litellm.BadRequestError, lambda: complete(temperature=9))


@case
def responses():
    answer = litellm.responses(model=f"openai/{MODEL}", input="Say one two.", api_base=BASE, api_key=KEY, max_output_tokens=16)
    assert answer.output


@case
def anthropic():
    assert complete("anthropic", base=URL).choices[0].message.content
    assert list(complete("anthropic", base=URL, stream=True))


@case
def ollama_chat():
    assert complete("ollama_chat", base=URL).choices[0].message.content
    assert list(complete("ollama_chat", base=URL, stream=True))


@case
def ollama():
    assert complete("ollama", base=URL).choices[0].message.content


if __name__ == "__main__":
    harness.main("litellm")
