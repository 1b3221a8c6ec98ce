"use strict";

(() => {
  const byId = (id) => document.getElementById(id);
  const facts = JSON.parse(byId("facts").textContent);
  const parts = facts.layers[0].subtokens;
  const CHUNK = 200;  // tokens that are painted together
  const CONTEXT = 8;  // tokens before and after a typical one
  const WIDE = 22;  // characters of them that are shown
  const TYPICAL = 12;
  const KEPT = 6;  // layers unpacked at a time
  const state = { at: 0, rank: 0, part: 0, color: "expert", expert: null, token: null, held: false };
  const spans = [], chunks = [], documentOf = [];
  let tokens, data, widget;

  // numbers

  const digits = (step) => Math.max(0, Math.ceil(-Math.log10(step) - 1e-9));
  const plain = (step) => step.toFixed(digits(step));
  const logitText = (q) => (q * facts.logit_step).toFixed(digits(facts.logit_step));
  const weightText = (q) => (q * facts.weight_step).toFixed(digits(facts.weight_step));

  async function unpack(text, dtype) {
    const binary = atob(text), bytes = new Uint8Array(binary.length);
    for (let at = 0; at < bytes.length; at++) bytes[at] = binary.charCodeAt(at);
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate"));
    const buffer = await new Response(stream).arrayBuffer();
    return new { int8: Int8Array, int16: Int16Array, int32: Int32Array }[dtype](buffer);
  }

  const unpacked = new Map();
  function layerData(at) {
    if (!unpacked.has(at)) {
      if (unpacked.size >= KEPT) unpacked.delete(unpacked.keys().next().value);
      const arrays = ["logits", "index", "weight"].map((name) => {
        const element = byId(`layer-${facts.layers[at].index}-${name}`);
        return unpack(element.textContent, element.dataset.dtype);
      });
      unpacked.set(at, Promise.all(arrays).then(([logits, index, weight]) => ({ logits, index, weight })));
    }
    return unpacked.get(at);
  }

  const layer = () => facts.layers[state.at];
  const chosen = (row) => data.index.subarray(row * layer().top_k, (row + 1) * layer().top_k);
  const string = (token) => facts.strings[tokens[token]];
  const written = (text) => (text === "" ? "∅" : text.replaceAll("\n", "↵").replaceAll("\t", "⇥"));

  // colors

  const GREYS = { constant: 0.92, copy: 0.84, zero: 0.76 };
  function expertColor(expert) {
    const kind = layer().expert_kinds[expert], count = layer().num_experts;
    if (kind in GREYS) return `oklch(${GREYS[kind]} 0 0)`;
    const hue = count <= 12 ? (360 * expert) / count : (expert * 137.508) % 360;
    return `oklch(${[0.9, 0.82, 0.74][expert % 3]} 0.11 ${hue})`;
  }
  const scaleColor = (share) => `oklch(${0.97 - 0.35 * share} ${0.02 + 0.1 * share} 250)`;

  function tokenColor(token) {
    const k = layer().top_k;
    if (state.color === "expert") {
      return expertColor(chosen(token * parts + state.part)[Math.min(state.rank, k - 1)]);
    }
    const all = data.index.subarray(token * parts * k, (token + 1) * parts * k);
    if (state.color === "ffn") {
      return scaleColor(all.filter((expert) => layer().expert_kinds[expert] === "ffn").length / all.length);
    }
    return scaleColor((new Set(all).size - 1) / Math.max(1, Math.min(layer().num_experts, all.length) - 1));
  }

  const uses = (token, expert) => {
    const k = layer().top_k;
    return data.index.subarray(token * parts * k, (token + 1) * parts * k).includes(expert);
  };

  // the text

  function write() {
    let token = 0;
    for (const document_ of facts.documents) {
      const title = document.createElement("h2");
      title.textContent = `text ${document_.number}` + (document_.label ? ` · ${document_.label}` : "");
      byId("text").append(title);
      for (let start = 0; start < document_.tokens; start += CHUNK) {
        const element = document.createElement("div");
        element.className = "chunk";
        const chunk = { element, from: token, to: token + Math.min(CHUNK, document_.tokens - start), painted: -1 };
        for (; token < chunk.to; token++) {
          const span = document.createElement("span");
          span.dataset.token = token;
          span.textContent = string(token).replaceAll("\n", "↵\n") || "∅";
          element.append(span);
          spans.push(span);
          documentOf.push(document_);
        }
        chunks.push(chunk);
        element.chunk = chunk;
        byId("text").append(element);
      }
    }
  }

  let version = 0;
  const visible = new Set();
  function paint(chunk) {
    if (chunk.painted === version) return;
    for (let token = chunk.from; token < chunk.to; token++) {
      spans[token].style.background = tokenColor(token);
      spans[token].classList.toggle("uses", state.expert !== null && uses(token, state.expert));
    }
    chunk.painted = version;
  }
  function repaint() {
    version += 1;
    visible.forEach(paint);
  }
  const watcher = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        visible[isIntersecting ? "add" : "delete"](target.chunk);
        if (isIntersecting && data) paint(target.chunk);
      }
    },
    { root: byId("text"), rootMargin: "600px" },
  );

  // one token

  function fill(name, columns) {
    const table = widget(name);
    table.source.data = columns;
    table.view.change.emit();  // as many rows as before would not be drawn again
  }

  function showToken() {
    const token = state.token;
    if (token === null) return;
    const { number, label } = documentOf[token];
    const which = parts > 1 ? `, sub-token ${state.part}` : "";
    byId("token").textContent =
      `“${written(string(token))}”, token ${token}${which} (text ${number}${label ? `, ${label}` : ""})`;
    const row = token * parts + state.part, count = layer().num_experts;
    const order = Array.from(chosen(row));
    const logits = data.logits.subarray(row * count, (row + 1) * count);
    const others = Array.from({ length: count }, (_, expert) => expert).filter((expert) => !order.includes(expert));
    others.sort((a, b) => logits[b] - logits[a] || a - b);
    const all = [...order, ...others];
    const weights = data.weight.subarray(row * layer().top_k, (row + 1) * layer().top_k);
    fill("experts", {
      rank: all.map((_, at) => (at < order.length ? `${at + 1}.` : "")),
      expert: all.map(String),
      kind: all.map((expert) => layer().expert_kinds[expert]),
      logit: all.map((expert) => logitText(logits[expert])),
      weight: all.map((_, at) => (at < order.length ? weightText(weights[at]) : "")),
    });
    if (parts > 1) showParts(token);
  }

  function showParts(token) {
    const k = layer().top_k;
    const rows = Array.from({ length: parts }, (_, part) => token * parts + part);
    fill("subtokens", {
      "sub-token": rows.map((_, part) => String(part)),
      experts: rows.map((row) => Array.from(chosen(row)).join(", ")),
      weights: rows.map((row) => Array.from(data.weight.subarray(row * k, (row + 1) * k), weightText).join(", ")),
    });
  }

  // one expert

  function pick(expert) {
    state.expert = expert;
    for (const chip of byId("chips").children) {
      chip.setAttribute("aria-pressed", String(Number(chip.value) === expert));
    }
    repaint();
    showExpert();
  }

  function showExpert() {
    const expert = state.expert;
    if (expert === null) return;
    const share = facts.load[state.at][expert];
    byId("expert").textContent =
      `Expert ${expert} of layer ${layer().index} (${layer().expert_kinds[expert]}): ` +
      `${(100 * share).toFixed(2)} % of the choices`;
    showTypical(expert);
    const layers = facts.layers.map(({ index }) => index);
    widget("load-source").data = {
      layer: layers,
      share: facts.load.map((shares) => shares[expert] ?? NaN),
      even: facts.layers.map(({ num_experts }) => 1 / num_experts),
    };
    if (facts.similar) {
      const near = facts.similar[state.at][expert] ?? [];
      fill("similar", { expert: near.map(([label]) => label), cosine: near.map(([, value]) => value.toFixed(4)) });
    }
    showDomains(expert);
  }

  function showTypical(expert) {
    const best = new Map(), k = layer().top_k;
    for (let at = 0; at < data.index.length; at++) {
      if (data.index[at] !== expert) continue;
      const token = Math.floor(at / (k * parts)), id = tokens[token], known = best.get(id);
      if (known === undefined || data.weight[at] > known.weight) best.set(id, { token, weight: data.weight[at] });
    }
    const shown = [...best.values()].sort((a, b) => b.weight - a.weight || a.token - b.token).slice(0, TYPICAL);
    const context = (token, from, to) => {
      const around = [];
      for (let at = token + from; at <= token + to; at++) if (documentOf[at] === documentOf[token]) around.push(string(at));
      return written(around.join(""));
    };
    fill("typical", {
      before: shown.map(({ token }) => context(token, -CONTEXT, -1).slice(-WIDE)),
      token: shown.map(({ token }) => written(string(token))),
      after: shown.map(({ token }) => context(token, 1, CONTEXT).slice(0, WIDE)),
      weight: shown.map(({ weight }) => weightText(weight)),
    });
  }

  function showDomains(expert) {
    const own = {}, all = {}, k = layer().top_k;
    let token = 0;
    for (const { label, tokens: count } of facts.documents) {
      const choices = data.index.subarray(token * parts * k, (token + count) * parts * k);
      own[label] = (own[label] ?? 0) + choices.filter((chosen_) => chosen_ === expert).length;
      all[label] = (all[label] ?? 0) + choices.length;
      token += count;
    }
    const labels = Object.keys(all);
    widget("domains-source").data = { label: labels, share: labels.map((label) => own[label] / all[label]) };
    widget("domains-all").location = facts.load[state.at][expert];
  }

  // what is chosen

  function writeChips() {
    byId("chips").replaceChildren(
      ...layer().expert_kinds.map((kind, expert) => {
        const chip = document.createElement("button");
        chip.value = expert;
        chip.textContent = kind === "ffn" ? expert : `${expert} ${kind}`;
        chip.title = `expert ${expert} (${kind})`;
        chip.style.background = expertColor(expert);
        chip.setAttribute("aria-pressed", String(expert === state.expert));
        return chip;
      }),
    );
  }

  async function go(at) {
    state.at = at;
    const found = await layerData(at);
    if (state.at !== at) return;  // the slider went on meanwhile
    data = found;
    if (state.expert !== null && state.expert >= layer().num_experts) state.expert = 0;
    writeChips();
    repaint();
    showToken();
    showExpert();
    document.body.dataset.layer = layer().index;
    for (const next of [at + 1, at - 1]) if (facts.layers[next]) setTimeout(layerData, 0, next);
  }

  function point(token) {
    spans[state.token]?.classList.remove("held");
    state.token = token;
    if (state.held) spans[token].classList.add("held");
    showToken();
  }

  const tokenAt = (event) => {
    const found = event.target.closest("[data-token]");
    return found === null ? null : Number(found.dataset.token);
  };

  function listen() {
    byId("text").addEventListener("mouseover", (event) => {
      const token = tokenAt(event);
      if (token !== null && !state.held) point(token);
    });
    byId("text").addEventListener("click", (event) => {
      const token = tokenAt(event);
      if (token === null) return;
      state.held = !(state.held && token === state.token);
      point(token);
    });
    document.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      const next = state.token + step;
      if (step === undefined || !state.held || event.target !== document.body || !spans[next]) return;
      event.preventDefault();
      point(next);
      spans[next].scrollIntoView({ block: "nearest" });
    });
    byId("chips").addEventListener("click", (event) => {
      const chip = event.target.closest("button");
      if (chip !== null) pick(Number(chip.value));
    });
    const on = (name, property, react) => {
      const model = widget(name);
      model.properties[property].change.connect(() => react(model[property]));
    };
    on("layer", "value", (value) => go(value));
    on("rank", "value", (value) => { state.rank = Number(value); repaint(); });
    on("color", "value", (value) => { state.color = value; repaint(); });
    on("subtoken", "value", (value) => { state.part = Number(value); repaint(); showToken(); });
    const onRow = (name, column, react) => {
      const { source } = widget(name);
      source.selected.properties.indices.change.connect(() => {
        const [row] = source.selected.indices;
        if (row === undefined) return;
        react(Number(source.data[column][row]));
        source.selected.indices = [];
      });
    };
    onRow("experts", "expert", pick);
    onRow("similar", "expert", pick);
    onRow("subtokens", "sub-token", (part) => { widget("subtoken").value = String(part); });
  }

  async function start() {
    while (!window.Bokeh?.documents?.length) await new Promise(requestAnimationFrame);
    const [made] = Bokeh.documents;
    widget = (name) => made.get_model_by_name(name);
    byId("name").textContent = `${facts.model} (${facts.family})`;
    byId("note").textContent =
      `Router logits are rounded to ${plain(facts.logit_step)}, weights to ${plain(facts.weight_step)}; ` +
      "tokens that use the picked expert are underlined.";
    byId("parts").hidden = parts === 1;
    byId("near").hidden = !facts.similar;
    byId("labels").hidden = new Set(facts.documents.map(({ label }) => label)).size === 1;
    tokens = await unpack(facts.tokens.text, facts.tokens.dtype);
    write();
    listen();
    state.expert = facts.load[0].indexOf(Math.max(...facts.load[0]));
    await go(0);
    chunks.forEach(({ element }) => watcher.observe(element));
    document.body.dataset.ready = "true";
  }

  start();
})();
