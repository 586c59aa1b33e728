"""pydantic-ai over Chat Completions and over Responses."""

import pydantic
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

import harness
from harness import BASE, CALL_WEATHER, KEY, MODEL, SAY_PERSON, case, equal

SETTINGS = {"max_tokens": 64}


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int


def agent(model=OpenAIChatModel, **more):
    made = Agent(model(MODEL, provider=OpenAIProvider(base_url=BASE, api_key=KEY)), model_settings=SETTINGS, retries=0, **more)

    @made.tool_plain
    def get_weather(city: str) -> str:
        """The weather of a city."""
        return f"21 degrees in {city}"

    return made


@case
async def text():
    assert (await agent().run("Say one two.")).output


@case
async def stream():
    async with agent().run_stream("Say one two.") as answer:
        assert [piece async for piece in answer.stream_text(debounce_by=None)]


@case(scripted=True)
async def a_tool_is_called():
    equal((await agent().run(CALL_WEATHER)).output, "21 degrees in Paris")


@case
async def output_by_a_tool():
    assert isinstance((await agent(output_type=Person).run(SAY_PERSON)).output, Person)


@case
async def output_by_a_schema():
    from pydantic_ai import NativeOutput

    assert isinstance((await agent(output_type=NativeOutput(Person)).run(SAY_PERSON)).output, Person)


@case
async def responses():
    assert (await agent(OpenAIResponsesModel).run("Say one two.")).output


@case(scripted=True)
async def responses_call_a_tool():
    equal((await agent(OpenAIResponsesModel).run(CALL_WEATHER)).output, "21 degrees in Paris")


if __name__ == "__main__":
    harness.main("pydantic-ai")
