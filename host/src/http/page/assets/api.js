// How the host is asked. The key is a variable of this module and of nothing else.

let key = "";
let askForKey = () => {};
// The key that was refused last: whoever closed the question is not asked again for the same.
let refused = null;

export const hasKey = () => key !== "";

export const useKey = (text) => {
  key = text.trim();
  refused = null;
};

// Called with a sentence whenever the host wants another key.
export const onKeyWanted = (ask) => {
  askForKey = ask;
};

export class HostError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

const sentence = async (response) => {
  const text = await response.text().catch(() => "");
  try {
    const body = JSON.parse(text);
    return body.error?.message ?? body.error ?? text;
  } catch {
    return text.slice(0, 500) || `the answer is ${response.status} ${response.statusText}`;
  }
};

export const request = async (path, { body, signal, method } = {}) => {
  const headers = {};
  if (key) headers.authorization = `Bearer ${key}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  const response = await fetch(path, {
    method: method ?? (body === undefined ? "GET" : "POST"),
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    signal,
    cache: "no-store",
    credentials: "omit",
  });
  if (response.ok) return response;
  const message = await sentence(response);
  if ((response.status === 401 || response.status === 403) && refused !== key) {
    refused = key;
    const unknown = key ? "The host does not know this key. Try another one." : "This host asks for an API key.";
    askForKey(response.status === 401 ? unknown : `This key is not enough: ${message}`);
  }
  throw new HostError(message, response.status);
};

export const json = async (path, options) => (await request(path, options)).json();

// Reads server-sent events: calls `take` with the name and the text of each. `heard`: on every sign of life.
export const events = async (response, take, heard = () => {}) => {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    heard();
    rest += value;
    const parts = rest.split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      let name = "message";
      const data = [];
      for (const line of part.split("\n")) {
        if (line.startsWith("event: ")) name = line.slice(7);
        else if (line.startsWith("data: ")) data.push(line.slice(6));
        else if (line === "data:") data.push("");
      }
      if (data.length) take(name, data.join("\n"));
    }
  }
};
