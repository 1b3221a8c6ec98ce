function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "text") element.textContent = value;
    else if (name === "style") Object.entries(value).forEach(([key, each]) => element.style.setProperty(key, each));
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const written = (text) => (text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));
const quoted = (text) => make("code", { text: written(text).replaceAll(" ", "␣"), title: written(text) });
const percent = (share) => (share === 0 ? "0 %" : `${(100 * share).toPrecision(3)} %`);
const times = (value) => `${value >= 99.5 ? Math.round(value) : value.toPrecision(2)}×`;

// an expert that a click, or Enter, picks; with Shift or Ctrl it joins those that are picked already

function expertButton(expert, at = view().at, name = String(expert)) {
  const picked = at === view().at && view().experts.includes(expert);
  return make("button", {
    type: "button", class: "pick", text: name, title: `expert ${expert} of layer ${model().layers[at].index}`,
    "aria-pressed": String(picked), style: { "--mark": at === view().at ? markOf(expert) : "var(--line)" },
    onclick: (event) => pick(expert, { at, more: event.shiftKey || event.ctrlKey || event.metaKey }),
  });
}

function tokenButton(token, text) {
  return make("button", {
    type: "button", class: "token", text, title: `token ${token}`, onclick: () => hold(token, { scroll: true }),
  });
}

// cells are text, or elements; a column whose name begins with # is one of numbers, with ~ takes the room that is left

function table(name, columns, rows) {
  const kinds = columns.map((column) => ({ "#": "number", "~": "grows" })[column[0]] ?? null);
  const cells = (row) =>
    row.map((cell, at) => make("td", { class: kinds[at] }, cell instanceof Node ? cell : String(cell)));
  const heads = columns.map((column, at) =>
    make("th", { scope: "col", class: kinds[at] },
      column === "" ? make("span", { class: "unseen", text: "as a bar" }) : column.replace(/^[#~]/, "")));
  return make("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": name },
    make("table", {}, make("thead", {}, make("tr", {}, ...heads)),
      make("tbody", {}, ...rows.map((row) => make("tr", {}, ...cells(row))))));
}

function bar(share, largest, even = null) {
  const width = (value) => `${(100 * value) / largest}%`;
  return make("span", { class: "bar", "aria-hidden": "true", style: { "--share": width(share) } },
    even === null ? null : make("i", { style: { left: width(even) } }));
}

// a part of the page with its name, what it says, and how it is taken along

function block(name, note, content, file) {
  const tools = content === null ? null : tableTools(content, file);
  return make("div", { class: "block" },
    make("div", { class: "head" }, make("h3", { text: name }), tools),
    note ? make("p", { class: "note", text: note }) : null,
    content);
}

function say(text) { byId("said").textContent = text; }
