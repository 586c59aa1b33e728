// Anthropic's SDK and Ollama's client for JavaScript.
import Anthropic from "@anthropic-ai/sdk";
import { Ollama } from "ollama";
import { CALL_WEATHER, KEY, MODEL, URL_, check, equal, rejects, run } from "./harness.mjs";

const anthropic = new Anthropic({ baseURL: URL_, apiKey: KEY, maxRetries: 0, timeout: 60000 });
const ollama = new Ollama({ host: URL_ });
const user = (content) => [{ role: "user", content }];
const schema = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const ask = (more) => ({ model: MODEL, max_tokens: 16, messages: user("Say one two."), ...more });
const few = (more) => ({ model: MODEL, messages: user("Say one two."), options: { num_predict: 8 }, ...more });

const cases = {
  async anthropic_message() {
    check((await anthropic.messages.create(ask())).content[0].text, "no text");
  },
  async anthropic_stream() {
    const final = await anthropic.messages.stream(ask()).finalMessage();
    check(final.content[0].text && final.usage.output_tokens > 0, final);
  },
  async anthropic_tokens() {
    check((await anthropic.messages.countTokens({ model: MODEL, messages: user("x") })).input_tokens > 0, "none");
  },
  async anthropic_unknown_model() {
    await rejects(anthropic.messages.create(ask({ model: "no-such" })), { status: 404 });
  },
  async ollama_chat() {
    check((await ollama.chat(few())).message.content, "no text");
  },
  async ollama_stream() {
    let last;
    for await (const piece of await ollama.chat(few({ stream: true }))) last = piece;
    equal(last.done, true);
  },
  async ollama_list() {
    check((await ollama.list()).models.length > 0, "no models");
  },
  async ollama_unknown_model() {
    const error = await rejects(ollama.chat(few({ model: "no-such" })), { status_code: 404 });
    check(!error.message.includes("[object"), error.message);
  },
};
const scripted = {
  async anthropic_tool() {
    const tools = [{ name: "get_weather", description: "The weather.", input_schema: schema }];
    const message = await anthropic.messages.create(ask({ messages: user(CALL_WEATHER), tools }));
    equal([message.stop_reason, message.content[0].input], ["tool_use", { city: "Paris" }]);
  },
  async ollama_tool() {
    const tools = [{ type: "function", function: { name: "get_weather", description: "The weather.", parameters: schema } }];
    const answer = await ollama.chat(few({ messages: user(CALL_WEATHER), tools }));
    equal(answer.message.tool_calls[0].function.arguments, { city: "Paris" });
  },
};

await run("clients-node", cases, scripted);
