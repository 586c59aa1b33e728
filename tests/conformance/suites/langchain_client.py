"""langchain-openai as programs use it."""

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI

import harness
from harness import BASE, CALL_WEATHER, KEY, LIMIT, MODEL, SAY_PERSON, case, equal

SETTINGS = {"model": MODEL, "base_url": BASE, "api_key": KEY, "timeout": LIMIT, "max_retries": 0}
CHAT = ChatOpenAI(max_tokens=32, **SETTINGS)


@tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


@case
def invoke():
    answer = CHAT.invoke([SystemMessage("Be brief."), HumanMessage("Say one two.")])
    assert answer.content and answer.usage_metadata["total_tokens"] > 0


@case
def stream():
    pieces = list(CHAT.stream("Say one two.", stream_usage=True))
    assert "".join(piece.content for piece in pieces)
    assert any(piece.usage_metadata for piece in pieces)


@case
def batch():
    equal(len(CHAT.batch(["one", "two", "three"])), 3)


@case
async def ainvoke():
    assert (await ChatOpenAI(max_tokens=8, **SETTINGS).ainvoke("Say one.")).content


@case
def completion():
    assert OpenAI(max_tokens=8, **SETTINGS).invoke("One two")


@case(scripted=True)
def tools_round_trip():
    bound = CHAT.bind_tools([get_weather])
    first = bound.invoke(CALL_WEATHER)
    call = first.tool_calls[0]
    equal((call["name"], call["args"]), ("get_weather", {"city": "Paris"}))
    second = bound.invoke([HumanMessage(CALL_WEATHER), first, ToolMessage(get_weather.invoke(call["args"]), tool_call_id=call["id"])])
    equal(second.content, "21 degrees in Paris")


@case(scripted=True)
def tools_in_a_stream():
    whole = None
    for piece in CHAT.bind_tools([get_weather]).stream(CALL_WEATHER):
        whole = piece if whole is None else whole + piece
    equal(whole.tool_calls[0]["args"], {"city": "Paris"})


@case
def a_forced_tool():
    for choice in ("any", "get_weather"):
        equal(CHAT.bind_tools([get_weather], tool_choice=choice).invoke("The weather in Paris?").tool_calls[0]["name"], "get_weather")


@case
def structured_output():
    import pydantic

    class Person(pydantic.BaseModel):
        """A person."""

        name: str
        age: int

    for method in ("json_schema", "function_calling"):
        assert isinstance(CHAT.with_structured_output(Person, method=method).invoke(SAY_PERSON), Person), method


@case
def responses_api():
    answer = ChatOpenAI(use_responses_api=True, **SETTINGS).invoke("Say one two.", max_output_tokens=16)
    assert answer.text


@case
def history_with_an_assistant():
    assert CHAT.invoke([HumanMessage("Hi"), AIMessage("Hello"), HumanMessage("Say one.")]).content


@case
def an_overflow_has_its_class():
    if harness.SCRIPTED:
        return  # the fixture has no context to overflow
    try:
        CHAT.invoke("word " * 20000)
    except Exception as error:
        assert "ContextOverflow" in type(error).__name__, type(error).__name__
    else:
        raise AssertionError("20,000 words were taken")


if __name__ == "__main__":
    harness.main("langchain")
