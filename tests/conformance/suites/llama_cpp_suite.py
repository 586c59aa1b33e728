"""llama.cpp's own tests of its server, those that ask for what OpenAI's or Anthropic's API has: against a host that runs already."""

import os
import sys
import urllib.parse

import harness

# Left out is whatever matches the text of its own small model, its build number, or its own token ids.
CHAT = [
    "test_chat_completions_multiple_choices",
    "test_chat_completions_token_count",
    "test_chat_template_continue_final_message_mutual_exclusion",
    "test_completion_with_response_format",
    "test_invalid_chat_completion_req",
    "test_logit_bias",
    "test_logprobs",
    "test_logprobs_stream",
]


def bend(utils):
    """Sends what the tests ask to the host, with the name of its model."""
    ask = utils.ServerProcess.make_request
    ask_streaming = utils.ServerProcess.make_stream_request

    def named(data):
        return {**data, "model": harness.MODEL} if isinstance(data, dict) else data

    def make_request(self, method, path, data=None, **more):
        return ask(self, method, path, named(data), **more)

    def make_stream_request(self, method, path, data=None, **more):
        return ask_streaming(self, method, path, named(data), **more)

    utils.ServerProcess.make_request = make_request
    utils.ServerProcess.make_stream_request = make_stream_request


if __name__ == "__main__":
    address = urllib.parse.urlsplit(harness.URL)
    os.environ.update(DEBUG_EXTERNAL="1", PORT=str(address.port))
    sys.path.insert(0, str(harness.SOURCE))
    import utils

    bend(utils)
    chosen = [f"unit/test_chat_completion.py::{name}" for name in CHAT]
    chosen += ["unit/test_compat_anthropic.py", "unit/test_tokenize.py"]
    # Pictures are fetched from a hub, and templates are looked at by a route of llama.cpp's own.
    left = "not vision and not image and not in_template and not reasoning_model and not with_bos"
    harness.run_pytest("llama-cpp-server", harness.SOURCE, ["-p", "no:xdist", "-k", left, *chosen], strip="unit/")
