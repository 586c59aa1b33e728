// The playground: which tab is shown, which models each offers, and the options that plugins take.

import { json } from "./api.js";
import { byId, copy, make, mark, say, show } from "./dom.js";
import { state } from "./feed.js";
import { startChat } from "./play_chat.js";
import { startImages, startMusic, startVectors } from "./play_media.js";

const TABS = ["chat", "image", "music", "vectors", "options"];
const TAB_OF = { text: "chat", image: "image", audio: "music", embedding: "vectors" };

const turn = (name, focus) => {
  for (const tab of TABS) {
    const is = tab === name;
    const button = byId(`tab-${tab}`);
    mark(button, "aria-selected", String(is));
    mark(button, "tabindex", is ? null : "-1");
    show(byId(`play-${tab}`), is);
    if (is && focus) button.focus();
  }
  if (name === "options") drawOptions();
};

export const tryModel = (id) => {
  const model = state.models.get(id);
  const tab = TAB_OF[model?.kind] ?? "options";
  turn(tab, false);
  location.hash = "#play";
  const select = byId(`play-${tab}`).querySelector("select[name=model]");
  select.value = id;
  select.dispatchEvent(new Event("change", { bubbles: true }));
  byId(`tab-${tab}`).focus();
};

const listed = new Map();

export const drawPlayModels = () => {
  const offered = state.models.size ? state.models : state.offered;
  for (const select of document.querySelectorAll("select[data-models]")) {
    const kind = select.dataset.models;
    const ids = [...offered.values()].filter((model) => kind === "*" || model.kind === kind).map((model) => model.id).sort();
    const now = ids.join("\n");
    if (listed.get(select) === now) continue;
    listed.set(select, now);
    const chosen = select.value;
    const none = make("option", { value: "", text: "no such model here" });
    select.replaceChildren(...(ids.length ? ids.map((id) => make("option", { value: id, text: id })) : [none]));
    const isUp = (id) => offered.get(id).state === "hot";
    if (ids.length) select.value = ids.includes(chosen) ? chosen : (ids.find(isUp) ?? ids[0]);
  }
};

// The value of a field of the options, as YAML and JSON have it; nothing where it is left to the plugin.
const valueOf = (input) => {
  if (input.type === "checkbox") return input.indeterminate ? undefined : input.checked;
  if (input.value === "") return undefined;
  if (input.type === "number") return Number(input.value);
  if (input.dataset.json) {
    try {
      const value = JSON.parse(input.value);
      input.setCustomValidity("");
      return value;
    } catch {
      input.setCustomValidity("This must be JSON.");
      return undefined;
    }
  }
  return input.value;
};

const resolved = (schema, root) => {
  const name = schema?.$ref?.startsWith("#/") ? schema.$ref.slice(2).split("/") : null;
  return name ? name.reduce((at, part) => at?.[part], root) ?? {} : (schema ?? {});
};

// The schema of one option with what stands for "or nothing" left out.
const plain = (asked, root) => {
  const whole = (one) => ({ ...resolved(one, root), ...one });
  const schema = whole(asked);
  const some = (schema.anyOf ?? schema.oneOf)?.map(whole).filter((one) => one.type !== "null");
  if (some?.length === 1) return plain({ ...some[0], ...schema, anyOf: some[0].anyOf, oneOf: some[0].oneOf, type: some[0].type }, root);
  const choices = some?.map((one) => (one.const === undefined ? one.enum : [one.const]));
  return choices?.length && choices.every(Boolean) ? { ...schema, enum: choices.flat() } : schema;
};

const field = (name, schema, value) => {
  const types = [].concat(schema.type ?? []).filter((type) => type !== "null");
  const choices = schema.enum?.filter((one) => one !== null);
  let input;
  if (choices) {
    input = make("select", { name }, make("option", { value: "", text: "plugin's" }), ...choices.map((one) => make("option", { value: one, text: one })));
    input.value = value ?? "";
  } else if (types[0] === "boolean") {
    input = make("select", { name, "data-json": "1" }, make("option", { value: "", text: "plugin's" }), make("option", { text: "true" }), make("option", { text: "false" }));
    input.value = value === undefined ? "" : String(value);
  } else if (types[0] === "integer" || types[0] === "number") {
    input = make("input", { name, type: "number", step: types[0] === "integer" ? "1" : "any", min: schema.minimum, max: schema.maximum, placeholder: schema.default ?? "plugin's" });
    input.value = value ?? "";
  } else if (types[0] === "string") {
    input = make("input", { name, type: "text", placeholder: schema.default ?? "plugin's", spellcheck: "false" });
    input.value = value ?? "";
  } else {
    input = make("textarea", { name, rows: 2, "data-json": "1", placeholder: "JSON", spellcheck: "false" });
    input.value = value === undefined ? "" : JSON.stringify(value);
  }
  const about = schema.description ? make("span", { class: "sub", id: `about-${name}`, text: schema.description }) : null;
  if (about) input.setAttribute("aria-describedby", about.id);
  return make("div", { class: "option" }, make("label", { class: "field" }, make("span", { text: name }), input), about);
};

let asked = 0;

const writeOptions = () => {
  const id = byId("options-form").elements.model.value;
  const inputs = [...byId("options-fields").querySelectorAll("input, select, textarea")];
  const options = Object.fromEntries(inputs.map((input) => [input.name, valueOf(input)]).filter(([, value]) => value !== undefined));
  // JSON is YAML.
  const lines = Object.entries(options).map(([name, value]) => `      ${/^[A-Za-z_][\w-]*$/.test(name) ? name : JSON.stringify(name)}: ${JSON.stringify(value)}`);
  const key = /^[A-Za-z_][\w.-]*$/.test(id) ? id : JSON.stringify(id);
  say(byId("options-out"), [`models:`, `  ${key}:`, lines.length ? `    options:` : `    options: {}`, ...lines].join("\n"));
};

const drawOptions = async () => {
  const id = byId("options-form").elements.model.value;
  const turnOf = ++asked;
  const fields = byId("options-fields");
  if (!id) return;
  say(byId("options-said"), "Asking the plugin");
  try {
    const { plugin, options, schema, note } = await json(`/admin/options?model=${encodeURIComponent(id)}`);
    if (turnOf !== asked) return;
    const properties = Object.entries(schema?.properties ?? {});
    fields.replaceChildren(...properties.map(([name, one]) => field(name, plain(one, schema), options?.[name])));
    const none = properties.length ? `What ${plugin} takes for ${id}. A changed models.yaml comes into force at once.` : `${plugin} takes no options.`;
    say(byId("options-said"), note ?? none);
    writeOptions();
  } catch (error) {
    if (turnOf !== asked) return;
    fields.replaceChildren();
    say(byId("options-said"), error.message);
  }
};

export const startPlay = () => {
  for (const name of TABS) {
    const button = byId(`tab-${name}`);
    button.addEventListener("click", () => turn(name, false));
    button.addEventListener("keydown", (event) => {
      const at = TABS.indexOf(name);
      const to = { ArrowRight: at + 1, ArrowLeft: at + TABS.length - 1, Home: 0, End: TABS.length - 1 }[event.key];
      if (to === undefined) return;
      event.preventDefault();
      turn(TABS[to % TABS.length], true);
    });
  }
  startChat();
  startImages();
  startMusic();
  startVectors();
  const form = byId("options-form");
  form.addEventListener("submit", (event) => event.preventDefault());
  form.elements.model.addEventListener("change", drawOptions);
  byId("options-fields").addEventListener("input", writeOptions);
  byId("options-copy").addEventListener("click", () => copy(byId("options-out").textContent, "Options"));
};
