// openai-node as programs use it.
import OpenAI from "openai";
import { zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";
import { BASE, CALL_WEATHER, KEY, MODEL, SAY_PERSON, check, equal, rejects, run } from "./harness.mjs";

const client = new OpenAI({ baseURL: BASE, apiKey: KEY, maxRetries: 0, timeout: 60000 });
const user = (content) => [{ role: "user", content }];
const USER = user("Say one two three.");
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const TOOL = { type: "function", function: { name: "get_weather", description: "The weather.", parameters } };
const chat = (more) => client.chat.completions.create({ model: MODEL, messages: USER, max_tokens: 16, ...more });

const cases = {
  async chat() {
    const answer = await chat();
    check(answer.choices[0].message.content && answer._request_id, answer);
  },
  async stream() {
    let text = "";
    let usage;
    for await (const chunk of await chat({ stream: true, stream_options: { include_usage: true } })) {
      text += chunk.choices[0]?.delta.content ?? "";
      usage = chunk.usage ?? usage;
    }
    check(text && usage.total_tokens > 0, { text, usage });
  },
  async stream_helper() {
    const final = await client.chat.completions.stream({ model: MODEL, messages: USER, max_tokens: 8 }).finalChatCompletion();
    check(final.choices[0].message.content, final);
  },
  async abort() {
    const stream = await chat({ stream: true, max_tokens: 64 });
    for await (const _ of stream) {
      stream.controller.abort();
      break;
    }
    check((await chat()).choices.length === 1, "no answer after an abort");
  },
  async several_choices() {
    equal((await chat({ n: 2 })).choices.map((choice) => choice.index), [0, 1]);
  },
  async logprobs() {
    const choice = (await chat({ logprobs: true, top_logprobs: 1 })).choices[0];
    equal(choice.logprobs.content.map((entry) => entry.token).join(""), choice.message.content);
  },
  async completions() {
    check((await client.completions.create({ model: MODEL, prompt: "One two", max_tokens: 4 })).choices[0].text, "no text");
  },
  async models() {
    const ids = [];
    for await (const model of client.models.list()) ids.push(model.id);
    equal((await client.models.retrieve(ids[0])).id, ids[0]);
  },
  async unknown_model() {
    const error = await rejects(chat({ model: "no-such" }), { status: 404, code: "model_not_found", param: "model" });
    check(error instanceof OpenAI.NotFoundError && error.requestID, error);
  },
  async bad_request() {
    await rejects(chat({ temperature: 7 }), { status: 400, param: "temperature" });
  },
  async forced_tool() {
    const answer = await chat({ messages: user("The weather in Paris?"), tools: [TOOL], tool_choice: "required", max_tokens: 64 });
    equal(answer.choices[0].message.tool_calls[0].function.name, "get_weather");
  },
  async parse_zod() {
    const format = zodResponseFormat(z.object({ name: z.string(), age: z.number().int() }), "person");
    const answer = await client.chat.completions.parse({ model: MODEL, messages: user(SAY_PERSON), response_format: format, max_tokens: 64 });
    check(answer.choices[0].message.parsed.name !== undefined, answer);
  },
  async responses() {
    const answer = await client.responses.create({ model: MODEL, input: "Say one two.", max_output_tokens: 16 });
    check(answer.output_text, answer);
  },
  async responses_stream() {
    const stream = client.responses.stream({ model: MODEL, input: "Say one two.", max_output_tokens: 16 });
    const kinds = [];
    for await (const event of stream) kinds.push(event.type);
    check(kinds.includes("response.output_text.delta"), kinds);
    check((await stream.finalResponse()).output_text, "no text");
  },
};

const scripted = {
  async tool_call() {
    const choice = (await chat({ messages: user(CALL_WEATHER), tools: [TOOL] })).choices[0];
    equal([choice.finish_reason, choice.message.tool_calls[0].function.arguments], ["tool_calls", '{"city":"Paris"}']);
  },
  async run_tools() {
    const weather = { function: ({ city }) => `21 degrees in ${city}`, parse: JSON.parse, ...TOOL.function };
    const runner = client.chat.completions.runTools({ model: MODEL, messages: user(CALL_WEATHER), tools: [{ type: "function", function: weather }] });
    equal(await runner.finalContent(), "21 degrees in Paris");
  },
  async run_tools_in_a_stream() {
    const weather = { function: ({ city }) => `21 degrees in ${city}`, parse: JSON.parse, ...TOOL.function };
    const tools = [{ type: "function", function: weather }];
    const runner = client.chat.completions.runTools({ model: MODEL, messages: user(CALL_WEATHER), tools, stream: true });
    equal(await runner.finalContent(), "21 degrees in Paris");
  },
};

await run("openai-node", cases, scripted);
