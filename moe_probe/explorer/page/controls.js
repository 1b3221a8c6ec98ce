const option = (value, text, chosen) => make("option", { value: String(value), text, selected: chosen });

function fill(id, options) {
  byId(id).replaceChildren(...options.map(([value, text, chosen]) => option(value, text, chosen)));
}

function colorings() {
  const names = { expert: isSmall() ? "expert" : "picked experts", weight: "weight of the choice" };
  if (layer().kinds) names.ffn = "FFN experts used";
  if (model().parts > 1) names.distinct = "distinct experts of its sub-tokens";
  if (linked) names.differs = "difference from the other model";
  return names;
}

// everything that the head of the page says follows from the state

function showControls() {
  const own = view(), known = layer(), names = colorings();
  if (!(state.color in names)) state.color = "expert";
  byId("layer").max = Math.max(0, model().layers.length - 1);
  byId("layer").value = own.at;
  byId("layer").disabled = model().layers.length === 1;
  byId("layer").setAttribute("aria-valuetext", `layer ${known.index}`);
  byId("layer-shown").textContent = known.index;
  const load = model().load(own.at);
  fill("expert", [["", "none", own.experts.length === 0],
    ...Array.from(load, (share, expert) => [expert, `${expert} (${percent(share)})`, expert === pickedExpert()])]);
  fill("rank", Array.from({ length: known.top_k }, (_, rank) => [rank, `${rank + 1}.`, rank === Math.min(state.rank, known.top_k - 1)]));
  fill("part", Array.from({ length: model().parts }, (_, part) => [part, String(part), part === state.part]));
  fill("color", Object.entries(names).map(([value, text]) => [value, text, value === state.color]));
  fill("label", [["", "all", state.label === null],
    ...model().labels.map((label) => [label, label || "(none)", label === state.label])]);
  fill("model", models.map((each, number) => [number, each.model, number === state.model]));
  if (byId("find").value !== state.find) byId("find").value = state.find;
  showLegend();
}

function showLegend() {
  const place = byId("legend"), byWeight = state.color === "weight" || (!isSmall() && view().experts.length === 0);
  if (state.color !== "expert" || byWeight) {
    const what = state.color === "expert" || state.color === "weight"
      ? `weight of the ${Math.min(state.rank, layer().top_k - 1) + 1}. choice` : colorings()[state.color];
    place.replaceChildren(make("span", { class: "ramp scale", "aria-hidden": "true" }), ` ${what}, small to large`);
    return;
  }
  const experts = isSmall() ? Array.from({ length: layer().num_experts }, (_, expert) => expert) : view().experts;
  place.replaceChildren(...experts.map((expert) => chip(expert)),
    isSmall() ? "" : make("span", { text: "the stronger, the more weight" }));
}

function chip(expert) {
  const kind = model().kindOf(layer(), expert);
  return make("button", {
    type: "button", class: "chip", value: expert, text: kind === "ffn" ? String(expert) : `${expert} ${kind}`,
    title: `expert ${expert} (${kind})`, "aria-label": `expert ${expert} (${kind})`,
    "aria-pressed": String(view().experts.includes(expert)), style: { background: tint(expert, view(), layer()) },
    onclick: (event) => {
      const more = event.shiftKey || event.ctrlKey || event.metaKey;
      if (!more && pickedExpert() === expert && view().experts.length === 1) pick(null);
      else pick(expert, { more: more || !isSmall() });
    },
  });
}

function listenToControls() {
  const on = (id, react, event = "change") => byId(id).addEventListener(event, () => react(byId(id).value));
  on("model", (value) => change(() => { state.model = Number(value); }));
  on("layer", (value) => goTo(Number(value)), "input");
  on("expert", (value) => pick(value === "" ? null : Number(value)));
  on("rank", (value) => change(() => { state.rank = Number(value); }));
  on("part", (value) => change(() => { state.part = Number(value); }));
  on("color", (value) => change(() => { state.color = value; }));
  on("label", () => change(() => {
    const at = byId("label").selectedIndex - 1;
    state.label = at < 0 ? null : model().labels[at];
  }));
  let waiting;
  on("find", (value) => {
    clearTimeout(waiting);
    waiting = setTimeout(() => find(value), 150);
  }, "input");
  byId("help-button").addEventListener("click", showHelp);
  byId("model-field").hidden = models.length === 1;
  byId("part-field").hidden = models.every(({ parts }) => parts === 1);
  byId("label-field").hidden = models[0].labels.length === 1;
}
