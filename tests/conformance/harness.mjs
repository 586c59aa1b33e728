// What suites in JavaScript share; see harness.py. A suite calls `run(suite, {name: async () => ...})`; the cases of `scripted`
// need a model that does what it is told.

export const URL_ = process.env.CONFORMANCE_URL ?? "http://127.0.0.1:9000";
export const BASE = URL_ + "/v1";
export const MODEL = process.env.CONFORMANCE_MODEL ?? "gpt-4o";
export const KEY = "sk-conformance";
export const CALL_WEATHER = 'call: get_weather {"city":"Paris"}';
export const SAY_PERSON = 'say: {"name":"Ada","age":36}';
const SCRIPTED = ["echo", "upstream"].includes(process.env.CONFORMANCE_ENGINE ?? "echo");
const LIMIT_MS = 60000;

export function check(holds, what) {
  if (!holds) throw new Error(typeof what === "string" ? what : JSON.stringify(what));
}

export function equal(left, right) {
  check(JSON.stringify(left) === JSON.stringify(right), `${JSON.stringify(left)} is not ${JSON.stringify(right)}`);
}

export async function rejects(promise, wanted) {
  try {
    await promise;
  } catch (error) {
    for (const [key, value] of Object.entries(wanted)) equal(error[key], value);
    return error;
  }
  throw new Error("nothing was thrown");
}

function tell(suite, name, ok, detail = "") {
  const line = { suite, case: name, ok, detail: String(detail).replace(/\s+/g, " ").slice(0, 400) };
  process.stdout.write(JSON.stringify(line) + "\n");
}

export async function run(suite, cases, scripted = {}) {
  for (const [name, body] of [...Object.entries(cases), ...Object.entries(scripted)]) {
    if (name in scripted && !SCRIPTED) {
      tell(suite, name, null, "needs a model that does what it is told");
      continue;
    }
    let timer;
    const limit = new Promise((_, reject) => (timer = setTimeout(() => reject(new Error("no end in time")), LIMIT_MS)));
    try {
      await Promise.race([body(), limit]);
      tell(suite, name, true);
    } catch (error) {
      tell(suite, name, false, `${error?.name}: ${error?.message ?? error}`);
    } finally {
      clearTimeout(timer);
    }
  }
  process.exit(0);
}
