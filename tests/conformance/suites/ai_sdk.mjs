// Vercel's AI SDK over `@ai-sdk/openai-compatible` and over `@ai-sdk/openai`, whose default is the Responses API.
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { Output, generateText, stepCountIs, streamText, tool } from "ai";
import { z } from "zod";
import { BASE, CALL_WEATHER, KEY, MODEL, SAY_PERSON, check, equal, run } from "./harness.mjs";

const compatible = createOpenAICompatible({ name: "host", baseURL: BASE, apiKey: KEY, includeUsage: true, supportsStructuredOutputs: true });
const openai = createOpenAI({ baseURL: BASE, apiKey: KEY });
const MODELS = { compatible: compatible(MODEL), chat: openai.chat(MODEL), responses: openai(MODEL) };
const common = { maxRetries: 0, maxOutputTokens: 64 };
const tools = {
  get_weather: tool({
    description: "The weather.",
    inputSchema: z.object({ city: z.string() }),
    execute: async ({ city }) => `21 degrees in ${city}`,
  }),
};
const person = Output.object({ schema: z.object({ name: z.string(), age: z.number().int() }) });

const cases = {};
const scripted = {};
for (const [name, model] of Object.entries(MODELS)) {
  cases[`${name}_generates`] = async () => {
    const answer = await generateText({ model, prompt: "Say one two.", ...common });
    check(answer.text && answer.usage.totalTokens > 0, answer.text);
  };
  cases[`${name}_streams`] = async () => {
    const errors = [];
    const answer = streamText({ model, prompt: "Say one two.", onError: ({ error }) => errors.push(error), ...common });
    let text = "";
    for await (const piece of answer.textStream) text += piece;
    check(text && errors.length === 0, errors.map(String));
    check((await answer.usage).totalTokens > 0 && ["stop", "length"].includes(await answer.finishReason), await answer.finishReason);
  };
  cases[`${name}_forces_a_tool`] = async () => {
    const answer = await generateText({ model, prompt: "The weather in Paris?", tools, toolChoice: "required", ...common });
    equal(answer.toolCalls[0].toolName, "get_weather");
  };
  cases[`${name}_keeps_a_schema`] = async () => {
    const answer = await generateText({ model, prompt: SAY_PERSON, output: person, ...common });
    check("name" in answer.output, answer.output);
  };
  scripted[`${name}_uses_a_tool`] = async () => {
    const answer = await generateText({ model, prompt: CALL_WEATHER, tools, stopWhen: stepCountIs(3), ...common });
    equal([answer.text, answer.steps.length], ["21 degrees in Paris", 2]);
  };
  scripted[`${name}_uses_a_tool_in_a_stream`] = async () => {
    const answer = streamText({ model, prompt: CALL_WEATHER, tools, stopWhen: stepCountIs(3), onError: () => {}, ...common });
    equal(await answer.text, "21 degrees in Paris");
  };
  // OpenAI's chat answers have no reasoning, and this provider looks for none.
  if (name === "chat") continue;
  scripted[`${name}_reads_reasoning`] = async () => {
    // A summary is asked for of models alone that this SDK takes for reasoning ones.
    const providerOptions = { openai: { forceReasoning: true, reasoningSummary: "auto" } };
    const answer = await generateText({ model, prompt: "think: Let me see.\nsay: Done.", providerOptions, ...common });
    equal([answer.reasoningText, answer.text], ["Let me see.", "Done."]);
  };
}
cases.completion_generates = async () => {
  const answer = await generateText({ model: openai.completion(MODEL), prompt: "Say one two.", ...common });
  check(answer.text, answer.text);
};
cases.an_unknown_model_is_told = async () => {
  try {
    await generateText({ model: compatible("no-such"), prompt: "x", ...common });
  } catch (error) {
    return equal(error.statusCode, 404);
  }
  throw new Error("nothing was thrown");
};

await run("ai-sdk", cases, scripted);
