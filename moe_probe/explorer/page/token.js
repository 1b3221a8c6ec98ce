function showToken() {
  const { token } = view(), place = byId("token");
  place.hidden = token === null;
  if (token === null) return;
  const { number, label } = model().documentOf[token];
  const where = `token ${token}, text ${number}${label ? `, ${label}` : ""}`;
  const held = view().held;
  const title = make("h2", {}, quoted(model().string(token)), make("small", { text: ` ${where}` }));
  const head = make("div", { class: "head" }, title,
    held ? tool("release", "Release the token (Esc)", () => hold(null, { held: false })) : null);
  const tables = linked ? [state.model, 1 - state.model].map((each) => expertsOfToken(each, token)) : [expertsOfToken(state.model, token)];
  place.replaceChildren(head, ...tables, ...(model().parts > 1 ? [partsOfToken(token)] : []));
}

function expertsOfToken(number, token) {
  const own = models[number], { data } = views[number], { layer: layer_ } = data;
  const row = token * own.parts + state.part, kinds = layer_.kinds !== undefined, rows = [];
  for (let rank = 0; rank < layer_.listed; rank++) {
    const expert = data.expert(row, rank);
    if (expert >= layer_.num_experts) continue;
    const name = number === state.model ? expertButton(expert) : String(expert);
    const kind = kinds ? [own.kindOf(layer_, expert)] : [];
    const weight = rank < data.k ? data.weightText(row, rank) : "";
    rows.push([rank < data.k ? `${rank + 1}.` : "", name, ...kind, data.logitText(row, rank), weight]);
  }
  const columns = ["#rank", "expert", ...(kinds ? ["kind"] : []), "#logit", "#weight"];
  const part = own.parts > 1 ? `, sub-token ${state.part}` : "";
  const name = `Its experts${models.length > 1 ? ` in ${own.model}` : ""}, layer ${layer_.index}${part}`;
  const others = layer_.num_experts - layer_.listed;
  const note = others > 0 ? `Those without a rank came next; ${others} others are not listed.` : "";
  return block(name, note, table(name, columns, rows), "experts of a token");
}

function partsOfToken(token) {
  const { data } = view(), { parts } = model();
  const rows = Array.from({ length: parts }, (_, part) => {
    const row = token * parts + part, ranks = [];
    data.eachChoice(row, (_expert, rank) => ranks.push(rank));
    const button = make("button", {
      type: "button", class: "pick", text: String(part), "aria-pressed": String(part === state.part),
      onclick: () => change(() => { state.part = part; }),
    });
    return [button, ranks.map((rank) => data.expert(row, rank)).join(", "),
      ranks.map((rank) => data.weightText(row, rank)).join(", ")];
  });
  return block("Its sub-tokens", "", table("Its sub-tokens", ["sub-token", "experts", "weights"], rows), "sub-tokens");
}
