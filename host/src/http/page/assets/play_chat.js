// A conversation: streamed, with what the model thinks folded away and its calls of tools shown.

import { events, request } from "./api.js";
import { byId, make, say } from "./dom.js";
import { plural, rate, span } from "./format.js";
import { snippets } from "./snippets.js";

// A very long conversation keeps its end on the page.
const TURNS_MAX = 200;

let turns = [];
let abort = null;

const number = (text) => (text === "" ? undefined : Number(text));

// What is asked next, or nothing where a field is wrong.
const asked = (draft) => {
  const fields = byId("chat-form").elements;
  let tools;
  if (fields.tools.value.trim()) {
    try {
      tools = JSON.parse(fields.tools.value);
    } catch {
      say(byId("chat-said"), "Tools must be JSON: a list of functions.");
      fields.tools.focus();
      return null;
    }
  }
  const system = fields.system.value.trim();
  const messages = [
    ...(system ? [{ role: "system", content: system }] : []),
    ...turns.map(({ role, content }) => ({ role, content })),
    ...(draft ? [{ role: "user", content: draft }] : []),
  ];
  const body = {
    model: fields.model.value,
    messages,
    temperature: number(fields.temperature.value),
    max_tokens: number(fields.max_tokens.value),
    reasoning_effort: fields.reasoning_effort.value || undefined,
    tools,
  };
  return { path: "/v1/chat/completions", body: JSON.parse(JSON.stringify(body)) };
};

const bubble = (role) => {
  const content = make("div", { class: "text" });
  const thought = make("div", { class: "text" });
  const thinking = make("details", { class: "thinking", hidden: true }, make("summary", { text: "Reasoning" }), thought);
  const calls = make("div", { class: "calls" });
  const said = make("p", { class: "sub" });
  const element = make("article", { class: `turn ${role}`, "aria-label": role === "user" ? "You" : "Model" }, make("p", { class: "who", text: role === "user" ? "You" : "Model" }), thinking, content, calls, said);
  const log = byId("chat-log");
  log.append(element);
  while (log.childElementCount > TURNS_MAX) log.firstElementChild.remove();
  log.scrollTop = log.scrollHeight;
  return { element, content, thought, thinking, calls, said };
};

// Takes in the pieces of an answer and draws them once a frame.
const answer = () => {
  const view = bubble("assistant");
  const parts = { content: "", thought: "", calls: new Map(), usage: null, finish: null, first: 0 };
  let due = false;
  const draw = () => {
    due = false;
    const log = byId("chat-log");
    const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 60;
    say(view.content, parts.content);
    say(view.thought, parts.thought);
    view.thinking.hidden = parts.thought === "";
    const calls = [...parts.calls.values()];
    view.calls.replaceChildren(...calls.map((call) => make("pre", { class: "code", text: `${call.name}(${call.text})` })));
    if (atEnd) log.scrollTop = log.scrollHeight;
  };
  const take = (chunk) => {
    if (chunk.error) throw new Error(chunk.error.message);
    if (chunk.usage) parts.usage = chunk.usage;
    const choice = chunk.choices?.[0];
    if (!choice) return;
    const { delta } = choice;
    if (!parts.first && (delta.content || delta.reasoning_content || delta.tool_calls)) parts.first = performance.now();
    parts.content += delta.content ?? "";
    parts.thought += delta.reasoning_content ?? "";
    for (const call of delta.tool_calls ?? []) {
      const known = parts.calls.get(call.index) ?? { name: "", text: "" };
      known.name += call.function?.name ?? "";
      known.text += call.function?.arguments ?? "";
      parts.calls.set(call.index, known);
    }
    parts.finish = choice.finish_reason ?? parts.finish;
    if (!due) {
      due = true;
      requestAnimationFrame(draw);
    }
  };
  return { view, parts, take, draw };
};

const send = async (text) => {
  const next = asked(text);
  if (!next) return;
  turns.push({ role: "user", content: text });
  say(bubble("user").content, text);
  const begun = performance.now();
  const { view, parts, take, draw } = answer();
  abort = new AbortController();
  byId("chat-stop").disabled = false;
  byId("chat-send").querySelector("[type=submit]").disabled = true;
  say(byId("chat-said"), "Waiting for the model");
  let end = "";
  try {
    const body = { ...next.body, stream: true, stream_options: { include_usage: true } };
    const response = await request(next.path, { body, signal: abort.signal });
    say(byId("chat-said"), "Answering");
    await events(response, (_, data) => {
      if (data !== "[DONE]") take(JSON.parse(data));
    });
  } catch (error) {
    end = abort.signal.aborted ? "stopped" : error.message;
  }
  draw();
  const ended = performance.now();
  abort = null;
  byId("chat-stop").disabled = true;
  byId("chat-send").querySelector("[type=submit]").disabled = false;
  if (parts.content || parts.calls.size) turns.push({ role: "assistant", content: parts.content });
  else if (end) turns.pop();
  const tokens = parts.usage?.completion_tokens;
  const seconds = (ended - parts.first) / 1000;
  const told = [
    end || (parts.finish === "length" ? "cut at its most tokens" : null),
    parts.first ? `first token after ${span(parts.first - begun)}` : null,
    tokens ? plural(tokens, "token", "tokens") : null,
    tokens > 1 && seconds > 0 ? `${rate(tokens / seconds)} tokens/s` : null,
  ];
  say(view.said, told.filter(Boolean).join(" · "));
  say(byId("chat-said"), end ? `The answer ended: ${end}` : "");
};

export const startChat = () => {
  const form = byId("chat-send");
  const box = form.elements.message;
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = box.value.trim();
    if (!text || abort) return;
    box.value = "";
    send(text);
  });
  box.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      form.requestSubmit();
    }
  });
  byId("chat-stop").addEventListener("click", () => abort?.abort());
  byId("chat-new").addEventListener("click", () => {
    abort?.abort();
    turns = [];
    byId("chat-log").replaceChildren();
    say(byId("chat-said"), "");
    box.focus();
  });
  byId("chat-form").addEventListener("submit", (event) => event.preventDefault());
  const draft = () => box.value.trim() || (turns.length ? "" : "Hello");
  snippets(document.querySelector("[data-snippets=chat]"), () => asked(draft()));
};
