const byId = (id) => document.getElementById(id);
const facts = JSON.parse(byId("facts").textContent);
const DIGITS = facts.digits;
const COLORED = 8; // experts that have colors of their own at a time
