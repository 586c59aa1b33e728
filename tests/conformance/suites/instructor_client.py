"""instructor in each of its modes for OpenAI's API."""

import instructor
import openai
import pydantic

import harness
from harness import BASE, KEY, LIMIT, MODEL, SAY_PERSON, case

CLIENT = openai.OpenAI(base_url=BASE, api_key=KEY, timeout=LIMIT, max_retries=0)


class Person(pydantic.BaseModel):
    """A person."""

    name: str
    age: int


def person(mode, words=SAY_PERSON):
    client = instructor.from_openai(CLIENT, mode=mode)
    messages = [{"role": "user", "content": words}]
    found = client.chat.completions.create(model=MODEL, messages=messages, response_model=Person, max_retries=1, max_tokens=64)
    assert isinstance(found, Person)


@case
def tools():
    person(instructor.Mode.TOOLS)


@case
def tools_strict():
    person(instructor.Mode.TOOLS_STRICT)


@case
def json_mode():
    person(instructor.Mode.JSON)


@case
def json_schema():
    person(instructor.Mode.JSON_SCHEMA)


@case(scripted=True)
def markdown():
    person(instructor.Mode.MD_JSON)


if __name__ == "__main__":
    harness.main("instructor")
