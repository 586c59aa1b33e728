// Images, music and vectors.

import { events, json, request } from "./api.js";
import { byId, draw, make, say, show } from "./dom.js";
import { plural, span } from "./format.js";
import { snippets } from "./snippets.js";

// Images and pieces that the page keeps; the oldest goes first, and its bytes with it.
const KEPT_MAX = 12;

const number = (text) => (text === "" ? undefined : Number(text));
const without = (body) => JSON.parse(JSON.stringify(body));

const bytesOf = (base64) => Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));

// Puts something new on top; what is too old goes with its files.
const keep = (parent, element) => {
  parent.prepend(element);
  while (parent.childElementCount > KEPT_MAX) {
    for (const one of parent.lastElementChild.querySelectorAll("[src^='blob:']")) URL.revokeObjectURL(one.src);
    parent.lastElementChild.remove();
  }
};

// Runs one request of a form at a time, with its progress and a button that stops it.
const runner = (name, run) => {
  let abort = null;
  const [bar, said, stop] = [`${name}-progress`, `${name}-said`, `${name}-stop`].map(byId);
  const form = byId(`${name}-form`);
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (abort) return;
    abort = new AbortController();
    stop.disabled = false;
    bar.removeAttribute("value");
    show(bar, true);
    say(said, "Waiting for the model");
    const begun = performance.now();
    try {
      const told = await run(abort.signal, (done, total) => {
        bar.max = total;
        bar.value = done;
        say(said, `Step ${done} of ${total}`);
      });
      say(said, `${told} in ${span(performance.now() - begun)}`);
    } catch (error) {
      say(said, abort.signal.aborted ? "Stopped" : error.message);
    }
    abort = null;
    stop.disabled = true;
    show(bar, false);
  });
  stop.addEventListener("click", () => abort?.abort());
};

// The texts of a PNG: iTXt that is not packed, and tEXt. Nothing where it is no PNG.
export const pngTexts = (buffer) => {
  const bytes = new Uint8Array(buffer);
  const view = new DataView(buffer);
  if (bytes.length < 8 || view.getUint32(0) !== 0x89504e47) return null;
  const texts = new Map();
  const end = (from, most) => {
    const at = bytes.indexOf(0, from);
    return at < 0 || at > most ? most : at;
  };
  let at = 8;
  while (at + 12 <= bytes.length) {
    const length = view.getUint32(at);
    const kind = new TextDecoder().decode(bytes.subarray(at + 4, at + 8));
    const [from, to] = [at + 8, Math.min(at + 8 + length, bytes.length)];
    const keyEnd = end(from, to);
    const name = new TextDecoder().decode(bytes.subarray(from, keyEnd));
    if (kind === "iTXt" && bytes[keyEnd + 1] === 0) {
      const language = end(keyEnd + 3, to);
      const translated = end(language + 1, to);
      texts.set(name, new TextDecoder().decode(bytes.subarray(translated + 1, to)));
    } else if (kind === "tEXt") {
      texts.set(name, new TextDecoder("latin1").decode(bytes.subarray(keyEnd + 1, to)));
    }
    at += 12 + length;
  }
  return texts;
};

const readPng = async (file) => {
  const fields = byId("image-form").elements;
  const said = byId("image-said");
  const texts = pngTexts(await file.arrayBuffer());
  if (!texts) return say(said, `${file.name} is no PNG.`);
  const names = ["prompt", "model", "seed", "steps", "size", "guidance"].filter((name) => texts.has(name));
  if (!names.length) return say(said, `${file.name} does not say what made it.`);
  for (const name of names) {
    const value = texts.get(name);
    const isOffered = name !== "model" || [...fields.model.options].some((option) => option.value === value);
    if (isOffered) fields[name].value = value;
  }
  return say(said, `Read from ${file.name}: ${names.join(", ")}`);
};

const imageAsked = () => {
  const fields = byId("image-form").elements;
  const body = {
    model: fields.model.value,
    prompt: fields.prompt.value,
    size: fields.size.value || undefined,
    steps: number(fields.steps.value),
    guidance: number(fields.guidance.value),
    seed: number(fields.seed.value),
  };
  return { path: "/v1/images/generations", body: without(body) };
};

export const startImages = () => {
  runner("image", async (signal, progress) => {
    const { path, body } = imageAsked();
    const partial = number(byId("image-form").elements.partial_images.value) ?? 0;
    const picture = make("img", { alt: body.prompt });
    const seed = make("span", {});
    const link = make("a", { text: "Save", download: "image.png", hidden: true });
    const element = make("figure", { "data-state": "partial" }, picture, make("figcaption", {}, make("span", { class: "name", text: body.prompt }), seed, link));
    let isThere = false;
    const showImage = (base64) => {
      if (picture.src) URL.revokeObjectURL(picture.src);
      picture.src = URL.createObjectURL(new Blob([bytesOf(base64)], { type: "image/png" }));
      if (!isThere) keep(byId("image-out"), element);
      isThere = true;
    };
    let isDone = false;
    const response = await request(path, { body: { ...body, stream: true, partial_images: partial }, signal });
    await events(response, (_, data) => {
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      if (event.type === "image_generation.progress") progress(event.done, event.total);
      if (event.b64_json) showImage(event.b64_json);
      if (event.type === "image_generation.completed") {
        isDone = true;
        element.dataset.state = "done";
        seed.textContent = `seed ${event.seed}, ${event.size}`;
        link.href = picture.src;
        link.hidden = false;
      }
    });
    if (!isDone) throw new Error("The answer ended before the image was done.");
    return "Made";
  });
  const drop = byId("image-drop");
  byId("image-file").addEventListener("change", (event) => event.target.files[0] && readPng(event.target.files[0]));
  drop.addEventListener("dragover", (event) => {
    event.preventDefault();
    drop.dataset.over = "";
  });
  drop.addEventListener("dragleave", () => delete drop.dataset.over);
  drop.addEventListener("drop", (event) => {
    event.preventDefault();
    delete drop.dataset.over;
    if (event.dataTransfer.files[0]) readPng(event.dataTransfer.files[0]);
  });
  snippets(document.querySelector("[data-snippets=image]"), imageAsked);
};

const WAVE = { width: 600, height: 80 };

// Where the samples of a WAV begin: behind the head of its chunk of them.
const samplesAt = (wav) => {
  const view = new DataView(wav.buffer);
  let at = 12;
  while (at + 8 <= wav.length) {
    if (view.getUint32(at) === 0x64617461) return at + 8;
    at += 8 + view.getUint32(at + 4, true);
  }
  throw new Error("The answer is no WAV file.");
};

// A picture of 16-bit samples: the loudest of each column.
const waveform = (wav, channels) => {
  const from = samplesAt(wav);
  const samples = new Int16Array(wav.buffer.slice(from, wav.length - ((wav.length - from) % 2)));
  const frames = Math.floor(samples.length / channels);
  const columns = WAVE.width / 3;
  const bars = [];
  for (let column = 0; column < columns; column += 1) {
    const [begin, end] = [column, column + 1].map((one) => Math.floor((one * frames) / columns));
    let peak = 0;
    for (let frame = begin; frame < end; frame += 1) peak = Math.max(peak, Math.abs(samples[frame * channels]));
    const height = Math.max(1, (peak / 32768) * WAVE.height);
    bars.push(`M${column * 3 + 1},${((WAVE.height - height) / 2).toFixed(1)}v${height.toFixed(1)}`);
  }
  return draw("svg", { viewBox: `0 0 ${WAVE.width} ${WAVE.height}`, preserveAspectRatio: "none", role: "img", class: "wave", "aria-label": "Waveform" }, draw("path", { d: bars.join("") }));
};

// A stream's head does not know how long it is; a player wants to.
const whole = (pieces) => {
  const wav = new Uint8Array(pieces.reduce((sum, piece) => sum + piece.length, 0));
  let at = 0;
  for (const piece of pieces) {
    wav.set(piece, at);
    at += piece.length;
  }
  const view = new DataView(wav.buffer);
  view.setUint32(4, wav.length - 8, true);
  const from = samplesAt(wav);
  view.setUint32(from - 4, wav.length - from, true);
  return wav;
};

const musicAsked = () => {
  const fields = byId("music-form").elements;
  const body = {
    model: fields.model.value,
    prompt: fields.prompt.value,
    duration: number(fields.duration.value),
    guidance_scale: number(fields.guidance_scale.value),
    temperature: number(fields.temperature.value),
    seed: number(fields.seed.value),
  };
  return { path: "/v1/audio/generations", body: without(body), file: "out.wav" };
};

export const startMusic = () => {
  runner("music", async (signal, progress) => {
    const { path, body } = musicAsked();
    const pieces = [];
    let done = null;
    const response = await request(path, { body: { ...body, stream: true, stream_format: "sse" }, signal });
    await events(response, (_, data) => {
      const event = JSON.parse(data);
      if (event.error) throw new Error(event.error.message);
      if (event.type === "audio_generation.progress") progress(event.done, event.total);
      if (event.type === "audio_generation.delta") pieces.push(bytesOf(event.audio));
      if (event.type === "audio_generation.done") done = event;
    });
    if (!done) throw new Error("The answer ended before the music was done.");
    const wav = whole(pieces);
    const source = URL.createObjectURL(new Blob([wav], { type: "audio/wav" }));
    const player = make("audio", { controls: true, src: source, "aria-label": `Music: ${body.prompt}` });
    const link = make("a", { text: "Save", href: source, download: "music.wav" });
    player.addEventListener("error", () => player.replaceWith(make("p", { class: "sub", text: `This browser does not play ${done.sample_rate} samples a second. Save the file and open it elsewhere.` })));
    keep(byId("music-out"), make("figure", {}, make("figcaption", {}, make("span", { class: "name", text: body.prompt }), link), waveform(wav, done.channels), player));
    return `${done.seconds.toFixed(1)} s made`;
  });
  snippets(document.querySelector("[data-snippets=music]"), musicAsked);
};

const vectorsAsked = () => {
  const fields = byId("vectors-form").elements;
  const input = fields.input.value.split("\n").map((line) => line.trim()).filter(Boolean);
  const body = { model: fields.model.value, input, dimensions: number(fields.dimensions.value) };
  return { path: "/v1/embeddings", body: without(body) };
};

// Texts that are compared with each other on one screen.
const LINES_MAX = 24;

const cosine = (a, b) => {
  let [dot, left, right] = [0, 0, 0];
  for (let at = 0; at < a.length; at += 1) {
    dot += a[at] * b[at];
    left += a[at] * a[at];
    right += b[at] * b[at];
  }
  return dot / (Math.sqrt(left * right) || 1);
};

export const startVectors = () => {
  const said = byId("vectors-said");
  byId("vectors-form").addEventListener("submit", async (event) => {
    event.preventDefault();
    const { path, body } = vectorsAsked();
    if (body.input.length < 1 || body.input.length > LINES_MAX) {
      say(said, `Write from 1 to ${LINES_MAX} lines.`);
      return;
    }
    say(said, "Waiting for the model");
    try {
      const begun = performance.now();
      const { data } = await json(path, { body });
      const vectors = data.map((one) => one.embedding);
      const head = make("tr", {}, make("td", {}), ...body.input.map((text, at) => make("th", { scope: "col", title: text, text: String(at + 1) })));
      const rows = body.input.map((text, row) => {
        const cells = vectors.map((vector) => {
          const value = cosine(vectors[row], vector);
          const cell = make("td", { class: "n", text: value.toFixed(3) });
          cell.style.setProperty("--warmth", `${Math.round(Math.max(0, value) * 60)}%`);
          return cell;
        });
        return make("tr", {}, make("th", { scope: "row", title: text, text: `${row + 1} ${text}` }), ...cells);
      });
      byId("vectors-out").replaceChildren(make("caption", { text: "Cosine of each two texts" }), make("thead", {}, head), make("tbody", {}, ...rows));
      say(said, `${plural(vectors.length, "vector", "vectors")} of ${vectors[0].length} numbers in ${span(performance.now() - begun)}`);
    } catch (error) {
      say(said, error.message);
    }
  });
  snippets(document.querySelector("[data-snippets=vectors]"), vectorsAsked);
};
