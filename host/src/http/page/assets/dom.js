// Elements are made here and nowhere else, and every text enters as text.

const SVG = "http://www.w3.org/2000/svg";

export const byId = (id) => document.getElementById(id);

const fill = (element, properties, children) => {
  for (const [name, value] of Object.entries(properties)) {
    if (value === undefined || value === null || value === false) continue;
    if (name === "text") element.textContent = value;
    else if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

export const make = (tag, properties = {}, ...children) => fill(document.createElement(tag), properties, children);

export const draw = (tag, properties = {}, ...children) => fill(document.createElementNS(SVG, tag), properties, children);

// Sets a text if it is another: what did not change costs nothing and disturbs no reader.
export const say = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

export const mark = (element, name, value) => {
  if (value === null || value === undefined || value === false) {
    if (element.hasAttribute(name)) element.removeAttribute(name);
    return;
  }
  const text = value === true ? "" : String(value);
  if (element.getAttribute(name) !== text) element.setAttribute(name, text);
};

export const show = (element, is) => {
  if (element.hidden === is) element.hidden = !is;
};

// Brings the children of an element in line with items: by their keys, moving and making as few as need be.
export const keyed = (parent, known, items, keyOf, create, update) => {
  const wanted = new Set();
  let before = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    wanted.add(key);
    let row = known.get(key);
    if (!row) {
      row = create(item);
      known.set(key, row);
    }
    update(row, item);
    if (row.element === before) before = before.nextElementSibling;
    else parent.insertBefore(row.element, before);
  }
  for (const [key, row] of known) {
    if (!wanted.has(key)) {
      row.element.remove();
      known.delete(key);
    }
  }
};

let toastTimer = 0;

export const toast = (text) => {
  const element = byId("toast");
  element.textContent = text;
  element.dataset.shown = "";
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => delete element.dataset.shown, 6000);
};

export const copy = async (text, what) => {
  try {
    await navigator.clipboard.writeText(text);
    toast(`${what} copied`);
  } catch {
    // Without TLS a browser has no clipboard on other addresses than this machine's.
    const area = make("textarea", { class: "unseen", "aria-hidden": "true" });
    area.value = text;
    document.body.append(area);
    area.select();
    const done = document.execCommand("copy");
    area.remove();
    toast(done ? `${what} copied` : "This browser does not let the page copy; select the text and copy it");
  }
};

export const confirmed = (title, text, yes) =>
  new Promise((resolve) => {
    const dialog = byId("ask-dialog");
    byId("ask-title").textContent = title;
    byId("ask-text").textContent = text;
    byId("ask-yes").textContent = yes;
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.returnValue = "no";
    dialog.showModal();
  });
