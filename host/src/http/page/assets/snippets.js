// The same request for a shell and for programs. A key is named by its variable and never written out.

import { hasKey } from "./api.js";
import { copy, make } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

const curl = ({ path, body, file }) => {
  const lines = [`curl -sS ${location.origin}${path}`, "-H 'content-type: application/json'"];
  if (hasKey()) lines.push('-H "authorization: Bearer $AIHOST_API_KEY"');
  lines.push(`-d ${quoted(JSON.stringify(body))}`);
  if (file) lines.push(`-o ${file}`);
  return lines.join(" \\\n  ");
};

// JSON as Python writes it.
const python = (value, indent = 0) => {
  const pad = "    ".repeat(indent + 1);
  if (value === null) return "None";
  if (value === true) return "True";
  if (value === false) return "False";
  if (Array.isArray(value)) return value.length ? `[\n${value.map((one) => `${pad}${python(one, indent + 1)},\n`).join("")}${"    ".repeat(indent)}]` : "[]";
  if (typeof value === "object") {
    const entries = Object.entries(value).map(([name, one]) => `${pad}${JSON.stringify(name)}: ${python(one, indent + 1)},\n`);
    return entries.length ? `{\n${entries.join("")}${"    ".repeat(indent)}}` : "{}";
  }
  return JSON.stringify(value);
};

const pythonText = ({ path, body, file }) =>
  [
    "import json",
    ...(hasKey() ? ["import os"] : []),
    "import urllib.request",
    "",
    `body = ${python(body)}`,
    "request = urllib.request.Request(",
    `    ${JSON.stringify(location.origin + path)},`,
    "    data=json.dumps(body).encode(),",
    hasKey()
      ? '    headers={"content-type": "application/json", "authorization": "Bearer " + os.environ["AIHOST_API_KEY"]},'
      : '    headers={"content-type": "application/json"},',
    ")",
    "with urllib.request.urlopen(request) as answer:",
    ...(file ? [`    with open(${JSON.stringify(file)}, "wb") as out:`, "        out.write(answer.read())"] : body.stream ? ["    for line in answer:", '        print(line.decode(), end="")'] : ["    print(json.load(answer))"]),
    "",
  ].join("\n");

const javascript = ({ path, body, file }) =>
  [
    ...(file ? ['import { writeFile } from "node:fs/promises";', ""] : []),
    `const answer = await fetch(${JSON.stringify(location.origin + path)}, {`,
    '  method: "POST",',
    hasKey()
      ? "  headers: { \"content-type\": \"application/json\", authorization: `Bearer ${process.env.AIHOST_API_KEY}` },"
      : '  headers: { "content-type": "application/json" },',
    `  body: JSON.stringify(${JSON.stringify(body, null, 2).replaceAll("\n", "\n  ")}),`,
    "});",
    ...(file ? [`await writeFile(${JSON.stringify(file)}, Buffer.from(await answer.arrayBuffer()));`] : body.stream ? ["for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) process.stdout.write(piece);"] : ["console.log(JSON.stringify(await answer.json(), null, 2));"]),
    "",
  ].join("\n");

const FORMS = { curl, Python: pythonText, JavaScript: javascript };

// Buttons that copy what `asked` gives: the path, the body, and where an answer of bytes goes.
export const snippets = (parent, asked) => {
  const one = ([name, form]) =>
    make("button", {
      type: "button",
      class: "small",
      text: `Copy ${name}`,
      on: {
        click: () => {
          const request = asked();
          if (request) copy(form(request), name);
        },
      },
    });
  parent.append(...Object.entries(FORMS).map(one));
};
