const KEYS = [
  ["/", "search for a token, a text or a label"],
  ["← →", "the token before, the token after"],
  ["↑ ↓", "the layer before, the layer after"],
  ["[ ]", "the expert before, the expert after"],
  ["c", "the next way to color the text"],
  ["t", "to the text"],
  ["l", "to the map of all experts: arrow keys walk, Enter picks"],
  ["o", "to the text through the layers: arrow keys walk, Enter picks"],
  ["e", "to the experts"],
  ["m", "the other model"],
  ["Shift + click", "one more expert, in a color of its own (up to eight)"],
  ["Esc", "close the search, drop the expert, release the token"],
  ["?", "this list"],
];

function showHelp() {
  const rows = KEYS.filter(([key]) => key !== "m" || models.length > 1)
    .map(([key, what]) => make("tr", {}, make("th", { scope: "row" }, make("kbd", { text: key })), make("td", { text: what })));
  const words = "Point at a token, click to hold it. Pick an expert in the map, in a list or in the box above. Buttons beside a " +
    "table or a picture copy what is seen, or save it as CSV or SVG. The address keeps what is shown: send it, or go back.";
  byId("help").replaceChildren(make("h2", { id: "help-title", text: "Keys" }), make("table", {}, make("tbody", {}, ...rows)),
    make("p", { text: words }),
    make("form", { method: "dialog" }, make("button", { class: "tool", text: "close" })));
  byId("help").showModal();
}

function escape() {
  if (state.find !== "") return find("");
  if (view().experts.length > 0) return pick(null);
  return hold(null, { held: false });
}

function nextExpert(by) {
  const count = layer().num_experts, from = pickedExpert() ?? (by > 0 ? -1 : count);
  return pick((from + by + count) % count);
}

function nextColor() {
  const names = Object.keys(colorings());
  return change(() => { state.color = names[(names.indexOf(state.color) + 1) % names.length]; });
}

const focusOn = (element) => { element.focus(); element.scrollIntoView({ block: "nearest" }); };
const ACTIONS = {
  "/": () => { byId("find").focus(); byId("find").select(); },
  "?": showHelp,
  "[": () => nextExpert(-1),
  "]": () => nextExpert(1),
  c: nextColor,
  t: () => focusOn(document.querySelectorAll(".text")[state.model]),
  l: () => focusOn(loadMap.canvas),
  o: () => focusOn(tokenMap.canvas),
  e: () => focusOn(byId("about")),
  m: () => change(() => { state.model = (state.model + 1) % models.length; }),
  Escape: escape,
};
const STEPS = {
  ArrowLeft: () => step(-1),
  ArrowRight: () => step(1),
  ArrowUp: () => goTo(view().at - 1),
  ArrowDown: () => goTo(view().at + 1),
};

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  const { target } = event, isField = target.matches("input, select, textarea");
  if (isField && !(event.key === "Escape" && target.id === "find")) return;
  const walks = target === document.body || target.matches(".text");
  const react = ACTIONS[event.key] ?? (walks ? STEPS[event.key] : undefined);
  if (react === undefined) return;
  event.preventDefault();
  react();
}
