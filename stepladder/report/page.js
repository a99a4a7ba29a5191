"use strict";
(() => {
  const byId = (id) => document.getElementById(id);
  const make = (tag, style, text) => {
    const node = document.createElement(tag);
    if (style) node.className = style;
    if (text !== undefined) node.textContent = text;
    return node;
  };

  // Values under the pointer.
  const tip = byId("tip");
  const showTip = (event) => {
    const target = event.target instanceof Element ? event.target.closest("[data-tip]") : null;
    tip.hidden = !target;
    if (!target) return;
    tip.textContent = target.dataset.tip;
    const { width, height } = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(4, Math.min(event.clientX + 14, innerWidth - width - 8))}px`;
    tip.style.top = `${event.clientY + height + 24 > innerHeight ? Math.max(4, event.clientY - height - 12) : event.clientY + 16}px`;
  };
  document.addEventListener("pointermove", showTip);
  document.addEventListener("pointerdown", showTip);
  document.addEventListener("scroll", () => { tip.hidden = true; }, { passive: true });

  // One round's token chart at a time, or all of them side by side.
  const tokenFigures = [...document.querySelectorAll("figure[data-round]")];
  if (tokenFigures.length > 1) {
    const choice = byId("round-choice");
    const choose = (round) => {
      for (const figure of tokenFigures) figure.hidden = round !== "all" && figure.dataset.round !== round;
      tokenFigures[0].parentElement.classList.toggle("single", round !== "all");
      choice.closest(".beside").classList.toggle("open", round === "all");
      for (const button of choice.children) button.setAttribute("aria-pressed", String(button.dataset.round === round));
    };
    for (const round of [...tokenFigures.map((figure) => figure.dataset.round), "all"]) {
      const button = make("button", "", round === "all" ? "all rounds" : `round ${round}`);
      button.type = "button";
      button.dataset.round = round;
      button.addEventListener("click", () => choose(round));
      choice.append(button);
    }
    choice.hidden = false;
    choose(tokenFigures.at(-1).dataset.round);
  }

  // Wrong problems: only the rows that are looked at become elements, however many there are.
  const wrong = JSON.parse(byId("wrong-data").textContent);
  const wrongFrame = byId("wrong-frame");
  if (wrongFrame && wrong.length) {
    const page = 12, body = byId("wrong-rows"), box = byId("wrong-search"), kind = byId("wrong-kind"), more = byId("wrong-more");
    const folded = wrong.map((each) => `${each.problem_id}\n${each.question}\n${each.answer ?? ""}`.toLowerCase());
    let found = [], shown = 0;
    const side = (right) => make("td", right === null ? "words" : right ? "words right" : "words wrong", right === null ? "–" : right ? "✓ right" : "✗ wrong");
    const showMore = () => {
      for (const index of found.slice(shown, shown + page)) {
        const each = wrong[index], row = make("tr"), head = make("th", "words", each.problem_id);
        head.scope = "row";
        const share = each.sampled === null ? "–" : `${(100 * each.sampled).toFixed(0)} %`;
        const long = (text) => {
          const cell = make("td", "words text"), inner = make("div", "clamp", text);
          if (text.length > 60) inner.dataset.tip = text;
          cell.append(inner);
          return cell;
        };
        row.append(head, long(each.question), long(each.answer ?? "–"), make("td", "words", each.failure), side(each.greedy), make("td", "number", share));
        body.append(row);
      }
      shown = Math.min(shown + page, found.length);
      more.hidden = shown === found.length;
      byId("wrong-count").textContent = `${shown.toLocaleString("en")} of ${found.length.toLocaleString("en")} shown`;
    };
    const look = () => {
      const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
      found = [...wrong.keys()].filter((index) => (!kind.value || wrong[index].failure === kind.value) && words.every((word) => folded[index].includes(word)));
      shown = 0;
      body.replaceChildren();
      showMore();
    };
    const option = (value, text) => { const made = make("option", "", text); made.value = value; return made; };
    kind.append(option("", "all kinds"), ...[...new Set(wrong.map((each) => each.failure))].sort().map((each) => option(each, each)));
    box.addEventListener("input", look);
    kind.addEventListener("change", look);
    more.addEventListener("click", showMore);
    wrongFrame.hidden = false;
    look();
  }

  // Paper has no pointer: what is folded is opened before it is printed.
  addEventListener("beforeprint", () => { for (const folded of document.querySelectorAll("details")) folded.open = true; });

  // Trees.
  const trees = JSON.parse(byId("trees-data").textContent);
  const frame = byId("trees-frame");
  if (!frame || !trees.length) return;
  const map = byId("tree-map");
  const svg = (tag, attributes, style) => {
    const node = document.createElementNS(map.namespaceURI, tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
    if (style) node.setAttribute("class", style);
    return node;
  };
  const figure = (value) => (value === null ? "–" : value.toFixed(2));
  const mark = (right) => (right === null ? "" : right ? "✓" : "✗");
  const verdict = (right) => (right === null ? "" : right ? "right" : "wrong");
  const ends = { end: "end", length: "cut: length", depth: "cut: depth", tool: "cut: errors of the tool", error: "error" };
  const isTerminal = (node) => node.stop in ends;
  const ending = (node) => (node.answer === null ? (node.stop === "end" ? "no answer" : ends[node.stop]) : `${node.stop === "end" ? "" : `${ends[node.stop]}, `}answer ${node.answer}`);
  let rows = [];
  let faces = [];

  const childrenOf = (tree) => {
    const children = tree.nodes.map(() => []);
    tree.nodes.forEach((node, index) => { if (node.parent >= 0) children[node.parent].push(index); });
    return children;
  };

  const describe = (node, index) => [
    index === 0 ? "the question" : node.text.trim(),
    node.action && `action: ${node.action}`,
    node.observation && `observed: ${node.observation.trim()}`,
    [`score ${figure(node.score)}`, `value ${figure(node.value)}`, `visits ${node.visits}`, `prior ${figure(node.prior)}`].join(" · "),
    isTerminal(node) ? `${ending(node)} ${verdict(node.right)}` : "",
  ].filter(Boolean).join("\n");

  const select = (index) => {
    faces.forEach((face, other) => face.classList.toggle("current", other === index));
    rows.forEach((row, other) => row.classList.toggle("current", other === index));
    for (let box = rows[index].closest("details"); box; box = box.parentElement.closest("details")) box.open = true;
    rows[index].scrollIntoView({ block: "nearest" });
  };

  // Leaves side by side in the tree's own order, parents above the middle of their children.
  const places = (tree, children) => {
    const across = [], down = [];
    let leaves = 0;
    const visit = (index, depth) => {
      down[index] = depth;
      children[index].forEach((child) => visit(child, depth + 1));
      const spots = children[index].map((child) => across[child]);
      across[index] = spots.length ? (spots[0] + spots.at(-1)) / 2 : leaves++;
    };
    visit(0, 0);
    return { across, down, leaves, deepest: Math.max(...down) };
  };

  const drawMap = (tree, children) => {
    const { across, down, leaves, deepest } = places(tree, children);
    const step = Math.max(13, Math.min(40, 720 / leaves));
    const width = step * (leaves - 1) + 44, height = 46 * deepest + 52;
    const x = (index) => 22 + step * across[index], y = (index) => 18 + 46 * down[index];
    const most = Math.max(1, ...tree.nodes.map((node) => node.visits));
    const scored = tree.nodes.some((node) => node.score !== null);
    map.setAttribute("width", width);
    map.setAttribute("height", height);
    map.replaceChildren();
    const order = tree.nodes.map((_, index) => index).sort((a, b) => tree.nodes[a].chosen - tree.nodes[b].chosen || a - b);
    for (const index of order) {
      const up = tree.nodes[index].parent;
      if (up < 0) continue;
      const middle = (y(up) + y(index)) / 2;
      const path = `M${x(up)} ${y(up)}C${x(up)} ${middle} ${x(index)} ${middle} ${x(index)} ${y(index)}`;
      map.append(svg("path", { d: path }, tree.nodes[index].chosen ? "link chosen" : "link"));
    }
    faces = tree.nodes.map((node, index) => {
      const group = svg("g", { transform: `translate(${x(index)} ${y(index)})`, "data-tip": describe(node, index) }, node.chosen ? "node chosen" : "node");
      const size = 3.2 + Math.min(5, step / 3) * Math.sqrt(node.visits / most);
      const shape = isTerminal(node) ? ["rect", { x: -size, y: -size, width: 2 * size, height: 2 * size }] : ["circle", { r: size }];
      const shade = scored ? node.score : node.value;
      const face = svg(...shape, shade === null ? "face blank" : "face");
      if (shade !== null) face.setAttribute("fill-opacity", (0.06 + 0.94 * shade).toFixed(3));
      group.append(svg(...shape, "back"), face);
      if (node.right !== null) {
        const sign = svg("text", { y: size + 12 }, verdict(node.right));
        sign.textContent = mark(node.right);
        group.append(sign);
      }
      group.addEventListener("click", () => select(index));
      map.append(group);
      return group;
    });
  };

  const cells = (node, index, hasChildren) => {
    const score = make("span", "num score");
    score.dataset.name = "score";
    if (node.score !== null) {
      const meter = make("span", "meter"), bar = make("i");
      bar.style.width = `${100 * node.score}%`;
      meter.append(bar);
      score.append(meter);
    }
    score.append(index === 0 ? "" : figure(node.score));
    const numbers = [["value", figure(node.value)], ["visits", node.visits], ["prior", index === 0 ? "" : figure(node.prior)]].map(([name, value]) => {
      const cell = make("span", "num", value);
      cell.dataset.name = name;
      return cell;
    });
    const end = make("span", "end", isTerminal(node) ? `${mark(node.right)} ${ending(node)}` : "");
    if (node.right !== null) end.classList.add(verdict(node.right));
    const text = make("span", "text", index === 0 ? "the question" : node.text.trim() || "(empty step)");
    if (node.action) text.prepend(make("span", "action", node.action));
    if (node.observation) text.append(make("span", "observation", node.observation.trim()));
    return [make("span", "twist", hasChildren ? "▸" : ""), text, score, ...numbers, end];
  };

  const outline = (tree, children, index) => {
    const node = tree.nodes[index], branches = children[index].length > 0 || node.hidden > 0;
    const row = make(branches ? "summary" : "div", node.chosen ? "row chosen" : "row");
    row.append(...cells(node, index, branches));
    row.addEventListener("click", () => { faces.forEach((face, other) => face.classList.toggle("current", other === index)); });
    rows[index] = row;
    if (!branches) return row;
    const box = make("details"), inner = make("div", "inner");
    box.dataset.chosen = node.chosen || index === 0;
    inner.append(...children[index].map((child) => outline(tree, children, child)));
    if (node.hidden) inner.append(make("div", "more", `${node.hidden} less visited ${node.hidden === 1 ? "node" : "nodes"} not shown`));
    box.append(row, inner);
    return box;
  };

  const setOpen = (rule) => { for (const box of byId("tree-outline").querySelectorAll("details")) box.open = rule(box); };
  const openPath = () => setOpen((box) => box.dataset.chosen === "true");

  const facts = (tree) => [
    tree.answer === null ? "no answer" : `answer ${tree.answer}${tree.correct === null ? "" : tree.correct ? ", right" : ", wrong"}`,
    tree.note,
    `${tree.method}, ${tree.simulations} simulations, ${tree.tokens.toLocaleString("en")} tokens, policy of round ${tree.policy_version}` +
      (tree.scorer_version === null ? ", no PRM" : `, PRM of round ${tree.scorer_version}`),
    tree.nodes.length < tree.total_nodes ? `the ${tree.nodes.length} most visited of ${tree.total_nodes} nodes are shown` : `${tree.total_nodes} nodes`,
  ].filter(Boolean).join(" · ");

  const show = (number) => {
    const tree = trees[number], children = childrenOf(tree);
    current = number;
    for (const button of byId("tree-list").children) button.setAttribute("aria-pressed", String(Number(button.dataset.number) === number));
    byId("tree-title").textContent = `${tree.problem_id} (${tree.split}, round ${tree.round})`;
    byId("tree-question").textContent = tree.question;
    byId("tree-facts").textContent = facts(tree);
    drawMap(tree, children);
    rows = [];
    const head = make("div", "row head");
    head.append(make("span", "twist"), make("span", "", "step"));
    head.lastChild.style.flex = "1";
    for (const [style, name] of [["num score", "PRM score"], ["num", "value"], ["num", "visits"], ["num", "prior"], ["end", "ends with"]]) head.append(make("span", style, name));
    byId("tree-outline").replaceChildren(head, outline(tree, children, 0));
    openPath();
  };

  // Of many trees only those that are looked for become buttons.
  const listed = 30, treeBox = byId("tree-search"), treeMore = byId("tree-more");
  const asked = trees.map((tree) => `${tree.problem_id}\n${tree.question}`.toLowerCase());
  let current = 0, matching = [], numListed = 0;
  const entry = (tree, number) => {
    const button = make("button");
    button.type = "button";
    button.dataset.number = number;
    button.setAttribute("aria-pressed", String(number === current));
    button.append(make("span", verdict(tree.correct), mark(tree.correct)), make("span", "asked", tree.question), make("span", "where", `${tree.split}, round ${tree.round}`));
    button.addEventListener("click", () => show(number));
    return button;
  };
  const listMore = () => {
    for (const number of matching.slice(numListed, numListed + listed)) byId("tree-list").append(entry(trees[number], number));
    numListed = Math.min(numListed + listed, matching.length);
    treeMore.hidden = numListed === matching.length;
  };
  const findTrees = () => {
    const words = treeBox.value.toLowerCase().split(/\s+/).filter(Boolean);
    matching = [...trees.keys()].filter((number) => words.every((word) => asked[number].includes(word)));
    numListed = 0;
    byId("tree-list").replaceChildren();
    listMore();
  };
  treeBox.addEventListener("input", findTrees);
  treeMore.addEventListener("click", listMore);
  byId("tree-find").hidden = trees.length <= 8;
  findTrees();
  byId("tree-open-path").addEventListener("click", openPath);
  byId("tree-open-all").addEventListener("click", () => setOpen(() => true));
  byId("tree-close-all").addEventListener("click", () => setOpen(() => false));
  frame.hidden = false;
  show(0);
})();
