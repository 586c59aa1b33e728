"""LlamaIndex's client for whatever is like OpenAI."""

from llama_index.core.llms import ChatMessage
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike

import harness
from harness import BASE, CALL_WEATHER, KEY, LIMIT, MODEL, SAY_PERSON, case, equal

SETTINGS = {"model": MODEL, "api_base": BASE, "api_key": KEY, "timeout": LIMIT, "max_retries": 0, "max_tokens": 32}
CHAT = OpenAILike(is_chat_model=True, is_function_calling_model=True, **SETTINGS)
USER = [ChatMessage(role="user", content="Say one two.")]


def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


@case
def complete():
    assert OpenAILike(is_chat_model=False, **SETTINGS).complete("One two").text


@case
def chat():
    assert CHAT.chat(USER).message.content


@case
def stream_chat():
    pieces = list(CHAT.stream_chat(USER))
    assert pieces[-1].message.content


@case
async def achat():
    assert (await OpenAILike(is_chat_model=True, **SETTINGS).achat(USER)).message.content


@case(scripted=True)
def a_tool_is_called():
    answer = CHAT.chat_with_tools([FunctionTool.from_defaults(get_weather)], user_msg=CALL_WEATHER)
    call = CHAT.get_tool_calls_from_response(answer)[0]
    equal((call.tool_name, call.tool_kwargs), ("get_weather", {"city": "Paris"}))


@case
def structured():
    import pydantic
    from llama_index.core.prompts import PromptTemplate

    class Person(pydantic.BaseModel):
        name: str
        age: int

    answer = CHAT.structured_predict(Person, PromptTemplate("{text}"), text=SAY_PERSON)
    assert isinstance(answer, Person)


if __name__ == "__main__":
    harness.main("llama-index")
