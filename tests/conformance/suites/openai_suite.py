"""openai-python's own tests of what a host of text models has, from its source distribution: loose and strict, both transports."""

import os

import harness

FILES = ["test_models.py", "chat/test_completions.py", "test_completions.py", "test_responses.py", "responses/test_input_tokens.py"]

if __name__ == "__main__":
    os.environ["TEST_API_BASE_URL"] = harness.BASE
    arguments = ["-o", "addopts=", "-o", "filterwarnings=default", "-p", "no:xdist", "-k", "loose or strict or aiohttp"]
    folder = "tests/api_resources/"
    harness.run_pytest("openai-python", harness.SOURCE, arguments + [folder + file for file in FILES], strip=folder)
