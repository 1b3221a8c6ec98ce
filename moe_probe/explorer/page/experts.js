const SUMMARY = 3; // tokens that an expert is told by

// the right side: what was searched for, one expert, or all experts of the layer

function showAbout() {
  if (state.find !== "") showSearch();
  else if (pickedExpert() !== null) {
    const expert = pickedExpert();
    byId("about").replaceChildren(...expertPage(expert));
    addSimilar(expert);
    addWords(expert);
  } else byId("about").replaceChildren(...allExperts());
}

function allExperts() {
  const { at, data } = view(), load = model().load(at), count = layer().num_experts;
  const largest = Math.max(...load, 1e-9);
  const told = Array.from({ length: count }, (_, expert) =>
    ({ expert, top: topTokens(model(), at, data, expert, SUMMARY) }));
  told.sort((a, b) => (b.top[0]?.lift ?? 0) - (a.top[0]?.lift ?? 0) || a.expert - b.expert);
  const rows = told.map(({ expert, top }) => {
    const tokens = top.map(({ type, lift: ratio }) => make("span", { class: "lifted" },
      quoted(model().strings[type]), make("small", { text: ` ${times(ratio)}` })));
    const kind = model().kindOf(layer(), expert);
    return [expertButton(expert, at, kind === "ffn" ? String(expert) : `${expert} ${kind}`), percent(load[expert]),
      bar(load[expert], largest, 1 / count), make("span", { class: "several" }, ...tokens)];
  });
  const title = make("h2", { text: `The ${count} experts of layer ${layer().index}` });
  const note = `The most particular ones first: with the tokens that choose them most above the average, and by how much ` +
    `(lift, smoothed by ${SMOOTHING}, at least ${LEAST} hits). Pick one to see what it does.`;
  const name = "Experts of the layer";
  return [title, block("By what they fire on", note,
    table(name, ["expert", "#share", "", "fires on"], rows), "experts")];
}
