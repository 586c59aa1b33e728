"""openai-agents over both of its model classes."""

import agents
import openai
import pydantic

import harness
from harness import BASE, CALL_WEATHER, KEY, LIMIT, MODEL, SAY_PERSON, case, equal

agents.set_tracing_disabled(True)
CHAT, RESPONSES = agents.OpenAIChatCompletionsModel, agents.OpenAIResponsesModel


@agents.function_tool
def get_weather(city: str) -> str:
    """The weather of a city."""
    return f"21 degrees in {city}"


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int


def agent(kind, choice=None, **more):
    client = openai.AsyncOpenAI(base_url=BASE, api_key=KEY, timeout=LIMIT, max_retries=0)
    settings = agents.ModelSettings(max_tokens=64, tool_choice=choice)
    return agents.Agent(name="a", instructions="Be brief.", model=kind(MODEL, client), model_settings=settings, **more)


async def answers(kind):
    assert (await agents.Runner.run(agent(kind), "Say one two.")).final_output


async def streams(kind):
    result = agents.Runner.run_streamed(agent(kind), "Say one two.")
    events = [event async for event in result.stream_events()]
    assert events and result.final_output


async def calls(kind):
    result = await agents.Runner.run(agent(kind, tools=[get_weather]), CALL_WEATHER, max_turns=3)
    equal(result.final_output, "21 degrees in Paris")


async def forced(kind):
    result = await agents.Runner.run(agent(kind, "required", tools=[get_weather]), "The weather in Paris?", max_turns=3)
    assert any(item.type == "tool_call_item" for item in result.new_items)


async def typed(kind):
    assert isinstance((await agents.Runner.run(agent(kind, output_type=Person), SAY_PERSON)).final_output, Person)


@case
async def chat_answers():
    await answers(CHAT)


@case
async def chat_streams():
    await streams(CHAT)


@case(scripted=True)
async def chat_calls_a_tool():
    await calls(CHAT)


@case
async def chat_calls_a_forced_tool():
    await forced(CHAT)


@case
async def chat_types_its_output():
    await typed(CHAT)


@case
async def responses_answer():
    await answers(RESPONSES)


@case
async def responses_stream():
    await streams(RESPONSES)


@case(scripted=True)
async def responses_call_a_tool():
    await calls(RESPONSES)


@case
async def responses_type_their_output():
    await typed(RESPONSES)


if __name__ == "__main__":
    harness.main("openai-agents")
