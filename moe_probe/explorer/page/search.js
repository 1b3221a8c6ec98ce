const FOUND = 20; // experts, texts or tokens that a search lists

// types of the strings that are searched for: those that are just it, or else those that hold it

function typesOf(query) {
  const exact = [], holding = [], plain = query.trim() || query, low = plain.toLowerCase();
  model().strings.forEach((string, type) => {
    if (string === query || string.trim() === plain) exact.push(type);
    else if (string.toLowerCase().includes(low)) holding.push(type);
  });
  return new Set(exact.length ? exact : holding);
}

function showSearch() {
  const query = state.find, types = typesOf(query);
  const head = make("div", { class: "head" }, make("h2", {}, "Search: ", quoted(query)),
    tool("close", "Close the search (Esc)", () => find("")));
  const place = make("div", { id: "found-experts" });
  byId("about").replaceChildren(head, place, ...foundLabels(query), ...foundTexts(query));
  if (types.size) searchExperts(types, place);
  else place.append(make("p", { class: "note", text: "No token of these texts has this string." }));
}

// experts of all layers by lift, layer by layer as they are unpacked

let searching = 0;
async function searchExperts(types, place) {
  searching += 1;
  const mine = searching, own = model(), all = [];
  const names = [...types].slice(0, 6).map((type) => quoted(own.strings[type]));
  for (let at = 0; at < own.layers.length; at++) {
    const data = await own.layerData(at);
    if (mine !== searching || !place.isConnected) return;
    all.push(...liftsOfTokens(own, at, data, types));
    if (at % 4 === 0) place.replaceChildren(make("p", { class: "note", text: `Layer ${at + 1} of ${own.layers.length} …` }));
  }
  all.sort((a, b) => b.lift - a.lift || b.hits - a.hits || a.at - b.at || a.expert - b.expert);
  const rows = all.slice(0, FOUND).map(({ at, expert, hits, rows: of, lift: ratio }) =>
    [String(own.layers[at].index), expertOfSearch(expert, at), times(ratio), `${hits} of ${of}`]);
  const name = "Experts that fire on it";
  const note = `In all layers, by lift: how many times more often it chooses the expert than all tokens do, smoothed by ` +
    `${SMOOTHING}; at least ${LEAST} hits.`;
  const found = block(name, note, table(name, ["#layer", "expert", "#lift", "#chosen"], rows), "experts of a search");
  found.querySelector("h3").append(" ", ...names, types.size > names.length ? ` and ${types.size - names.length} more` : "");
  place.replaceChildren(found);
  place.dataset.done = "true";
}

// the expert's page takes the place of the search; Back returns to it

function expertOfSearch(expert, at) {
  return make("button", {
    type: "button", class: "pick", text: `${expert}`, title: `expert ${expert} of layer ${model().layers[at].index}`,
    onclick: () => change((_, own) => { Object.assign(own, { at, experts: [expert] }); state.find = ""; }),
  });
}

function foundLabels(query) {
  const labels = model().labels.filter((label) => label && label.toLowerCase().includes(query.trim().toLowerCase()));
  if (labels.length === 0) return [];
  const rows = labels.map((label) => {
    const show_ = () => change(() => { state.label = label; state.find = ""; });
    return [make("button", { type: "button", class: "pick", text: label, onclick: show_ }),
      model().documents.filter((each) => each.label === label).length];
  });
  return [block("Labels", "", table("Labels", ["label", "#texts"], rows), "labels")];
}

function foundTexts(query) {
  const low = query.toLowerCase(), own = model(), rows = [];
  for (const each of own.documents) {
    if (rows.length === FOUND) break;
    const token = startOf(own, each, low);
    if (token === null) continue;
    rows.push([tokenButton(token, `text ${each.number}`), each.label, contextOf(token)]);
  }
  return rows.length ? [block("Texts", "", table("Texts", ["text", "label", "~where"], rows), "texts")] : [];
}

// the token of a text that what is searched for begins in; that of its beginning for its number

function startOf(own, { number, from, to }, low) {
  if (low.trim() === `text ${number}`) return from;
  const ends = [];
  let text = "";
  for (let token = from; token < to; token++) ends.push((text += own.string(token)).length);
  const at = text.toLowerCase().indexOf(low);
  return at < 0 ? null : from + ends.findIndex((end) => end > at);
}

const find = (query) => change(() => { state.find = query; });
