"use strict";

const byId = (id) => document.getElementById(id);
const shop = { history: [], asked: 0 };

async function ask(path, body) {
  const headers = { "Content-Type": "application/json" };
  const token = sessionStorage.getItem("token");
  if (token) headers.Authorization = `Bearer ${token}`;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (answer.status === 401) {
    const given = prompt("The token of this server:");
    if (given) {
      sessionStorage.setItem("token", given);
      return ask(path, body);
    }
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error || `The server answered ${answer.status}.`);
  return content;
}

function element(name, text, className) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
}

function row(item, onClick, figure) {
  const line = element("li"), button = element("button");
  button.type = "button";
  button.append(element("span", item.title || "(no title)", "title"));
  button.append(element("span", figure === undefined ? "" : figure, "figure"));
  button.append(element("span", `${item.item_id} · ${item.semantic_id.join("-")}`, "id"));
  button.addEventListener("click", onClick);
  line.append(button);
  return line;
}

function tell(error) {
  byId("error").hidden = !error;
  byId("error").textContent = error ? error.message : "";
}

async function search() {
  const query = new URLSearchParams({ text: byId("words").value, category: byId("category").value, limit: 50 });
  const found = await ask(`search?${query}`);
  byId("found").replaceChildren(...found.map((item) => row(item, () => take(item))));
  if (!found.length) byId("found").append(element("li", "No item has these words.", "hint"));
}

function take(item) {
  shop.history.push(item);
  refresh();
}

function wanted() {
  const only = byId("only").checked && byId("category").value;
  return {
    history: shop.history.map((item) => item.item_id),
    k: Math.min(Math.max(Number(byId("k").value) || 10, 1), 100),
    category: only || null,
    keep_seen: byId("seen").checked,
  };
}

async function refresh() {
  const number = ++shop.asked;
  byId("history").replaceChildren(
    ...shop.history.map((item, place) => row(item, () => { shop.history.splice(place, 1); refresh(); })),
  );
  try {
    const [list, paths] = await Promise.all([ask("recommend", wanted()), ask("explain", wanted())]);
    if (number !== shop.asked) return;
    tell(null);
    showList(list);
    showTree(paths.levels);
  } catch (error) {
    if (number === shop.asked) tell(error);
  }
}

function showList(list) {
  byId("note").textContent = list.fallback
    ? "No item of the history is known: what was bought most."
    : "Score: the logarithm of the probability, or what the model ranks by.";
  byId("list").replaceChildren(
    ...list.items.map((item) => {
      const line = row(item, () => take(item), item.score.toFixed(2));
      const path = element("button", "path", "path");
      path.type = "button";
      path.addEventListener("click", () => markPath(item, line));
      line.addEventListener("mouseenter", () => markPath(item, line));
      line.append(path);
      return line;
    }),
  );
  if (!list.items.length) byId("list").append(element("li", "Nothing is left to recommend.", "hint"));
}

function showTree(levels) {
  const largest = levels.map((branches) => Math.max(...branches.map((branch) => branch.probability)));
  byId("tree").replaceChildren(
    ...levels.map((branches, depth) => {
      const line = element("div", undefined, "level");
      line.append(element("b", `level ${depth + 1}`));
      for (const branch of branches) {
        const chip = element("span", branch.codes.join("-"), "branch");
        chip.dataset.codes = branch.codes.join("-");
        chip.title = `${(100 * branch.probability).toPrecision(3)} %, ${branch.n_items} items`;
        chip.append(element("small", `${(100 * branch.probability).toPrecision(2)} % · ${branch.n_items}`));
        const bar = element("i");
        bar.style.width = `${(100 * branch.probability) / largest[depth]}%`;
        chip.append(bar);
        line.append(chip);
      }
      return line;
    }),
  );
  if (!levels.length) byId("tree").append(element("p", "No search: the list is what was bought most.", "hint"));
}

function markPath(item, line) {
  document.querySelectorAll(".marked").forEach((other) => other.classList.remove("marked"));
  line.classList.add("marked");
  const codes = item.semantic_id;
  document.querySelectorAll(".branch").forEach((chip) => {
    const own = chip.dataset.codes.split("-").map(Number);
    chip.classList.toggle("on", own.every((code, level) => code === codes[level]));
  });
}

async function start() {
  try {
    const served = await ask("healthz");
    byId("served").textContent =
      `${served.items.toLocaleString()} items · model ${served.model.slice(0, 12)} · catalogue ${served.catalogue}`;
    for (const { category, items } of await ask("categories")) {
      const option = element("option", `${category} (${items.toLocaleString()})`);
      option.value = category;
      byId("category").append(option);
    }
    await search();
    await refresh();
  } catch (error) {
    tell(error);
  }
}

let waiting;
byId("words").addEventListener("input", () => {
  clearTimeout(waiting);
  waiting = setTimeout(() => search().catch(tell), 150);
});
byId("category").addEventListener("change", () => { search().catch(tell); refresh(); });
byId("search").addEventListener("submit", (event) => event.preventDefault());
byId("rules").addEventListener("submit", (event) => event.preventDefault());
byId("rules").addEventListener("change", refresh);
byId("clear").addEventListener("click", () => { shop.history = []; refresh(); });
start();
