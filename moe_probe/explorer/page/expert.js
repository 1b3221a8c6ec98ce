const MOST_TOKENS = 15; // tokens that an expert's page lists
const PARTNERS = 8;
const CONTEXT = 8; // tokens before and after one
const WIDE = 26; // characters of them that are shown

function contextOf(token) {
  const own = model(), { from, to } = own.documentOf[token];
  const join = (start, end) => {
    const around = [];
    for (let at = Math.max(from, start); at < Math.min(to, end); at++) around.push(own.string(at));
    return around.length ? written(around.join("")) : "";
  };
  return make("span", { class: "context" },
    make("span", { class: "before" }, make("span", { text: join(token - CONTEXT, token).slice(-WIDE) })),
    tokenButton(token, written(own.string(token))),
    make("span", { class: "after", text: join(token + 1, token + 1 + CONTEXT).slice(0, WIDE) }));
}

function expertPage(expert) {
  const own = view(), { at, data } = own, load = model().load(at)[expert];
  const kind = model().kindOf(layer(), expert), even = load * layer().num_experts;
  const title = `Expert ${expert} of layer ${layer().index}` + (kind === "ffn" ? "" : ` (${kind})`);
  const head = make("div", { class: "head" }, make("h2", { id: "expert-title", text: title }),
    tool("all experts", "Back to all experts of the layer (Esc)", () => pick(null)));
  const sentence = make("p", {
    id: "expert-load", text: load > 0 ? `${percent(load)} of the choices, ${times(even)} an even share.`
      : "No token of these texts chooses it." });
  const seen = load > 0 ? [firesOn(at, data, expert), ...firesWith(at, data, expert)] : [];
  return [head, sentence, ...seen, laterPlace("words"), laterPlace("near"), ...(load > 0 ? byLabel(at, expert) : [])];
}

const laterPlace = (name) => make("div", { id: `expert-${name}` });

function firesOn(at, data, expert) {
  const best = bestPlaces(model(), data, expert);
  const byLift = view().by === "lift";
  const order = (how, name) => make("button", {
    type: "button", class: "tool", text: name, "aria-pressed": String((view().by === how)),
    onclick: () => change((_, own) => { own.by = how; }),
  });
  const rows = byLift
    ? topTokens(model(), at, data, expert, MOST_TOKENS).map(({ type, ...found }) => ({ ...found, ...best.get(type) }))
    : [...best.values()].sort((a, b) => b.weight - a.weight || a.token - b.token).slice(0, MOST_TOKENS);
  const cells = rows.map(({ type, token, row, rank, hits, rows: of, lift: ratio }) => {
    const number = byLift ? [times(ratio), `${hits} of ${of}`] : [data.weightText(row, rank)];
    return [quoted(model().strings[type]), ...number, contextOf(token)];
  });
  const columns = byLift ? ["token", "#lift", "#chosen", "~where it has the largest weight"] : ["token", "#weight", "~where"];
  const note = byLift
    ? `Lift: how many times more often this token chooses the expert than all tokens do, with ${SMOOTHING} average ` +
      `${model().parts > 1 ? "sub-tokens" : "tokens"} added; at least ${LEAST} hits.`
    : "The largest weight that each token string gets from it.";
  const made = block("What it fires on", note, table("What it fires on", columns, cells), "what it fires on");
  made.querySelector(".tools").prepend(order("lift", "by lift"), order("weight", "by weight"));
  if (rows.length === 0) made.append(make("p", { class: "note", text: "No token chooses it often enough in these texts." }));
  return made;
}

function firesWith(at, data, expert) {
  const partners = coactivation(model(), at, data, expert).slice(0, PARTNERS);
  if (partners.length === 0) return [];
  const largest = partners[0].lift;
  const rows = partners.map(({ other, hits, rows: of, lift: ratio }) =>
    [expertButton(other), times(ratio), `${hits} of ${of}`, bar(ratio, Math.max(largest, 1), 1)]);
  const note = `Lift: how many times more often the other is chosen beside it than anywhere (line: 1×), smoothed by ` +
    `${SMOOTHING}; at least ${LEAST} hits.`;
  return [block("Whom it fires with", note, table("Whom it fires with", ["expert", "#lift", "#together", ""], rows), "partners")];
}

function byLabel(at, expert) {
  const shares = shareByLabel(model(), at, expert);
  if (shares.length < 2) return [];
  const largest = Math.max(...shares.map(({ share }) => share), 1e-9);
  const all = model().load(at)[expert];
  const rows = shares.map(({ label, share }) => [label || "(none)", percent(share), bar(share, largest, state.label === null ? all : null)]);
  const note = "Its share of each label's choices (line: of all texts).";
  return [block("Its share by label", note, table("Its share by label", ["label", "#share", ""], rows), "share by label")];
}

// what is unpacked when it is asked for: the words that an expert writes, and the experts that are like it

async function addSimilar(expert, own = model(), index = layer().index) {
  if (!own.similar) return;
  const [near, cosine] = await Promise.all([own.array(`${index}-near`), own.array(`${index}-cosine`)]);
  const place = byId("expert-near");
  if (pickedExpert() !== expert || index !== layer().index || place === null) return;
  const rows = [];
  for (let at = expert * own.similar; at < (expert + 1) * own.similar; at++) {
    if (near[at] < layer().num_experts) rows.push([expertButton(near[at]), (cosine[at] / 1000).toFixed(3)]);
  }
  const name = "Most similar experts, by their weights";
  if (rows.length) place.replaceChildren(block(name, "", table(name, ["expert", "#cosine"], rows), "similar experts"));
}

async function addWords(expert, own = model(), index = layer().index) {
  if (!own.words.length) return;
  const [words, logits] = await Promise.all([own.array(`${index}-words`), own.array(`${index}-wordlogits`)]);
  const place = byId("expert-words"), each = words.length / layer().num_experts;
  if (pickedExpert() !== expert || index !== layer().index || place === null) return;
  const rows = [];
  for (let at = expert * each; at < (expert + 1) * each; at++) {
    if (words[at] < own.words.length) rows.push([quoted(own.words[words[at]]), (logits[at] / 100).toFixed(2)]);
  }
  const name = "What it writes into the vocabulary";
  const note = "Its mean weighted output through the last norm and the head: logits above the vocabulary's mean.";
  if (rows.length) place.replaceChildren(block(name, note, table(name, ["token", "#logit"], rows), "words"));
}
