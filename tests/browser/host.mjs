// A host under test: a real `aihost serve` on a port of its own, with its own folders. It may be killed, and come back at the
// same port.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { chmod, cp, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join, resolve } from "node:path";

const ROOT = resolve(import.meta.dirname, "../..");
// How long a host may take until it listens.
const START_MS = 30000;

export const golden = (path) => join(ROOT, "tests/golden", path);

const freePort = async () => {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  await once(server, "close");
  return port;
};

export class Host {
  // `yaml`: all below the folders and the address. `plugins`: names of files in the folder of what was built.
  static async start({ built, yaml, plugins, env = {} }) {
    const folder = await mkdtemp(join(tmpdir(), "aihost-page-"));
    await chmod(folder, 0o700);
    const host = new Host();
    Object.assign(host, { folder, built, env, port: await freePort(), child: null, log: "" });
    host.base = `http://127.0.0.1:${host.port}`;
    await mkdir(join(folder, "plugins"), { mode: 0o700 });
    for (const [name, file] of Object.entries(plugins)) await cp(join(built, file), join(folder, "plugins", `${name}.so`));
    const head = ["plugins", "models", "state"].map((name) => `${name}_dir: ${join(folder, name)}\n`).join("");
    await writeFile(join(folder, "models.yaml"), `${head}listen: 127.0.0.1:${host.port}\n${yaml}`, { mode: 0o600 });
    await host.up();
    return host;
  }

  async up() {
    const config = join(this.folder, "models.yaml");
    const child = spawn(join(this.built, "aihost"), ["serve", "--log-format", "text", "--config", config], {
      env: { ...process.env, ...this.env },
      stdio: ["ignore", "ignore", "pipe"],
    });
    this.child = child;
    child.stderr.on("data", (text) => {
      this.log = (this.log + text).slice(-200000);
    });
    const begun = performance.now();
    while (!(await this.answers())) {
      if (child.exitCode !== null || performance.now() - begun > START_MS) {
        throw new Error(`the host does not listen:\n${this.log}`);
      }
      await new Promise((done) => setTimeout(done, 50));
    }
  }

  async answers() {
    return fetch(`${this.base}/livez`).then((answer) => answer.ok, () => false);
  }

  async kill(signal = "SIGKILL") {
    const child = this.child;
    if (!child || child.exitCode !== null || child.signalCode !== null) return;
    const ended = once(child, "exit");
    child.kill(signal);
    await ended;
  }

  async stop() {
    await this.kill();
    await rm(this.folder, { recursive: true, force: true });
  }

  async ask(path, body, headers = {}) {
    const sent = body === undefined ? {} : { method: "POST", body: JSON.stringify(body) };
    const answer = await fetch(this.base + path, { ...sent, headers: { "content-type": "application/json", ...headers } });
    const text = await answer.text();
    try {
      return { status: answer.status, body: JSON.parse(text) };
    } catch {
      return { status: answer.status, body: text };
    }
  }

  // Bytes that the host's process holds, and its open files.
  async size() {
    const { readFile, readdir } = await import("node:fs/promises");
    const status = await readFile(`/proc/${this.child.pid}/status`, "utf8");
    const resident = Number(/VmRSS:\s+(\d+)/.exec(status)[1]) * 1024;
    return { resident, files: (await readdir(`/proc/${this.child.pid}/fd`)).length };
  }
}

// Models of every kind, quick enough to be looked at: text that says back what it is told (and thinks, and calls tools, by
// script), one that fails, a tiny image model, a tiny music model, vectors; and `many` more.
export const everyKind = (many = 0) => {
  const more = Array.from({ length: many }, (_, at) => `  library/model-${String(at).padStart(3, "0")}: {type: text, plugin: aihost/echo}\n`);
  return `devices: [{id: cpu, memory: 1GiB, max_loaded: 3}]
defaults: {keep_alive: forever}
models:
  talker: {type: text, plugin: aihost/echo, endpoint: /v1/chat/completions, default: true, aliases: [gpt-4o-mini], options: {script: true, load_ms: 300, memory: 104857600}}
  slow: {type: text, plugin: aihost/echo, options: {latency_ms: 40, load_ms: 1500, tokens: 400, memory: 209715200}}
  broken: {type: text, plugin: aihost/faulty, options: {fault: load_error}}
  noisy: {type: text, plugin: aihost/faulty, options: {fault: none}}
  fox: {type: image, plugin: flux, source: {path: ${golden("flux/dev")}}, options: {max_pixels: 65536}}
  tune: {type: audio, plugin: musicgen, source: {path: ${golden("musicgen/mono")}}, options: {chunk_frames: 10}}
  words: {type: embedding, plugin: aihost/vectors}
${more.join("")}`;
};

export const PLUGINS = {
  echo: "libfixture_echo.so",
  faulty: "libfixture_faulty.so",
  vectors: "libfixture_vectors.so",
  flux: "libflux.so",
  musicgen: "libmusicgen.so",
};
