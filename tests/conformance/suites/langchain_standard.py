"""LangChain's standard integration tests for chat models, over langchain-openai."""

import pathlib
import sys

import harness
from langchain_openai import ChatOpenAI
from langchain_tests.integration_tests import ChatModelIntegrationTests


class TestHost(ChatModelIntegrationTests):
    """The host as langchain-openai sees it."""

    @property
    def chat_model_class(self):
        return ChatOpenAI

    @property
    def chat_model_params(self):
        more = {"base_url": harness.BASE, "api_key": harness.KEY, "timeout": harness.LIMIT, "max_tokens": 64}
        return {"model": harness.MODEL, "temperature": 0, "max_retries": 0, "stream_usage": True, **more}

    @property
    def model_override_value(self):
        return harness.OTHER

    @property
    def supports_json_mode(self):
        return True


if __name__ == "__main__":
    here = pathlib.Path(__file__)
    sys.path.insert(0, str(here.parent))
    scopes = ["-o", "asyncio_default_test_loop_scope=session", "-o", "asyncio_default_fixture_loop_scope=session"]
    arguments = ["-o", "asyncio_mode=auto", "-o", "python_files=langchain_standard.py", "-o", "addopts=", "--benchmark-disable"]
    harness.run_pytest("langchain-standard", here.parent, [*arguments, *scopes, here.name], strip=here.name + "::TestHost::")
