const CHUNK = 400; // tokens that are written, and painted, together
const AT_ONCE = 5; // chunks that are written before anything else is done
const spans = models.map(() => []), chunks = models.map(() => []);
const visible = new Set();
let painted = 0;

function panelOf(own) {
  const name = models.length > 1 ? own.model : "Text";
  const panel = make("article", {
    class: "text", tabindex: "0", "aria-label": `${name}: arrow keys move from token to token and from layer to layer`,
    onmouseover: (event) => hover(own.number, event), onclick: (event) => click(own.number, event),
    onfocus: () => { if (state.model !== own.number) change(() => { state.model = own.number; }); },
  });
  const head = make("div", { class: "head" }, make("h2", { text: name }), textTools(own.number, panel));
  byId("texts").append(make("section", { class: "panel", "aria-label": name }, head, panel));
  return panel;
}

function showPanels() {
  document.querySelectorAll(".panel").forEach((panel, number) => {
    panel.classList.toggle("active", models.length > 1 && number === state.model);
  });
}

// an element for every document, with as many chunks as it takes; tokens come into them later

function layOut(own, panel) {
  for (const each of own.documents) {
    const title = `text ${each.number}` + (each.label ? ` · ${each.label}` : "");
    each.element = make("div", { class: "document" }, make("h3", { text: title }));
    for (let from = each.from; from < each.to; from += CHUNK) {
      const element = make("div", { class: "chunk" }), to = Math.min(each.to, from + CHUNK);
      element.chunk = { model: own.number, element, from, to, painted: -1 };
      chunks[own.number].push(element.chunk);
      each.element.append(element);
    }
    panel.append(each.element);
  }
}

function write({ model: number, element, from, to }) {
  const made = document.createDocumentFragment();
  for (let token = from; token < to; token++) {
    const span = document.createElement("span");
    span.dataset.token = token;
    span.textContent = models[number].string(token).replaceAll("\n", "↵\n") || "∅";
    spans[number][token] = span;
    made.append(span);
  }
  element.append(made);
}

// the rest of the texts, while the page can be used already

async function writeTexts() {
  for (const each of chunks.flatMap((all) => all.slice(0, AT_ONCE))) write(each);
}

async function writeOtherTexts() {
  const waiting = chunks.flatMap((all) => all.slice(AT_ONCE));
  for (let at = 0; at < waiting.length; at += AT_ONCE) {
    await new Promise((done) => { setTimeout(done); });
    for (const each of waiting.slice(at, at + AT_ONCE)) {
      write(each);
      watcher.observe(each.element);
    }
  }
}

function paint(chunk) {
  const own = views[chunk.model];
  if (chunk.painted === painted || own.data === null) return;
  for (let token = chunk.from; token < chunk.to; token++) {
    const span = spans[chunk.model][token];
    span.style.background = tokenColor(chunk.model, token);
    span.classList.toggle("uses", own.experts.length > 0 && !isPickedColor(chunk.model) && uses(chunk.model, token));
    span.classList.toggle("held", own.held && own.token === token);
  }
  chunk.painted = painted;
}

function repaint() {
  painted += 1;
  for (const own of models) {
    for (const each of own.documents) each.element.hidden = state.label !== null && each.label !== state.label;
  }
  visible.forEach(paint);
}

const watcher = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      visible[isIntersecting ? "add" : "delete"](target.chunk);
      if (isIntersecting) paint(target.chunk);
    }
  },
  { rootMargin: "400px" },
);

const tokenAt = (event) => {
  const span = event.target.closest("[data-token]");
  return span === null ? null : Number(span.dataset.token);
};

function hover(number, event) {
  const token = tokenAt(event);
  if (token === null || views[number].held || number !== state.model) return;
  for (const each of linked ? views : [view()]) if (!each.held) each.token = token;
  showToken();
}

function click(number, event) {
  const token = tokenAt(event);
  if (token === null) return;
  const own = views[number], again = own.held && own.token === token;
  state.model = number;
  hold(token, { held: !again });
}

function revealToken(number, token) {
  const own = models[number].documentOf[token];
  if (own.element.hidden) state.label = null;
  requestAnimationFrame(() => {
    spans[number][token]?.scrollIntoView({ block: "nearest" });
  });
}

function step(by) {
  const own = model(), from = view().token ?? (by > 0 ? -1 : own.size);
  for (let token = from + by; token >= 0 && token < own.size; token += by) {
    if (!own.documentOf[token].element.hidden) return hold(token, { scroll: true });
  }
  return null;
}
