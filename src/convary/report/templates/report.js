// SPDX-License-Identifier: Apache-2.0
// What the page can do beyond being read: points answer, columns sort, networks hide, figures grow.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const on = (node, event, ...how) => node.addEventListener(event, ...how);
  const set = (node, attributes) => Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, value));
  const make = (tag, attributes, ...content) => {
    const node = document.createElement(tag);
    set(node, attributes);
    node.append(...content);
    return node;
  };
  const button = (attributes, ...content) => make("button", { type: "button", ...attributes }, ...content);
  document.documentElement.classList.add("scripted");

  // Points, bars and cells (.mark) say their title in a tip, which a screen reader hears too.
  const tip = make("div", { id: "tip", role: "status" });
  const textOf = (mark) => {
    if (mark.dataset.tip) return mark.dataset.tip;
    const row = mark.parentNode, at = all(".mark", row).indexOf(mark);
    const [name, values] = row.dataset.tip.split(/: (?=[^:]*$)/);
    return `${row.parentNode.getAttribute("aria-label")} ${at + 1}, ${name}: ${values.split(/\s+/)[at]}`;
  };
  const answer = (event) => {
    const mark = event.target.closest?.(".mark");
    tip.classList.toggle("on", Boolean(mark));
    if (!mark) return;
    tip.textContent = textOf(mark);
    (mark.closest("dialog") || document.body).append(tip);
    const box = mark.getBoundingClientRect(), { width, height } = tip.getBoundingClientRect();
    const left = Math.min(Math.max(4, box.left + box.width / 2 - width / 2), innerWidth - width - 4);
    tip.style.left = `${left}px`;
    tip.style.top = `${box.top - height - 8 < 4 ? box.bottom + 8 : box.top - height - 8}px`;
  };
  on(document, "pointerover", answer);
  on(document, "focusin", answer);
  on(document, "scroll", () => answer({ target: document.activeElement }), true);

  // A figure takes the focus; arrows go through its marks, up and down by data-marks of them.
  for (const figure of all("[data-marks]")) {
    for (const title of all("* > title", figure)) {
      title.parentNode.dataset.tip = title.textContent;
      title.remove();
    }
    for (const mark of all("[title]", figure)) {
      mark.dataset.tip = mark.title;
      mark.title = "";
    }
    set(figure, { role: "group", tabindex: 0 });
    on(figure, "keydown", (event) => {
      const row = Number(figure.dataset.marks) || 1;
      const step = { ArrowRight: 1, ArrowDown: row, ArrowLeft: -1, ArrowUp: -row }[event.key];
      const marks = all(".mark", figure).filter((mark) => mark.getClientRects().length);
      if (!step || !marks.length) return;
      event.preventDefault();
      const from = marks.indexOf(document.activeElement), at = from < 0 ? 0 : from + step + marks.length;
      const next = marks[at % marks.length];
      set(next, { tabindex: -1, role: "img", "aria-label": textOf(next) });
      next.focus();
    });
  }

  // A header sorts its column by data-v: numbers from the largest, words from A, nothing last.
  for (const table of all("table.sortable")) {
    const heads = all("thead tr:last-child th", table);
    heads.forEach((head, column) => {
      set(head, { "aria-sort": "none" });
      const click = button({}, ...head.childNodes);
      head.append(click);
      on(click, "click", () => {
        const value = (row) => row.cells[column].dataset.v || "";
        const rows = [...table.tBodies[0].rows], numbers = !rows.some((row) => Number.isNaN(Number(value(row))));
        const orders = numbers ? ["descending", "ascending"] : ["ascending", "descending"];
        const order = orders[Number(head.getAttribute("aria-sort") === orders[0])];
        heads.forEach((one) => set(one, { "aria-sort": one === head ? order : "none" }));
        rows.sort((a, b) => {
          const x = value(a), y = value(b);
          if (!x || !y) return !x - !y;
          return (order === "ascending" ? 1 : -1) * (numbers ? x - y : x.localeCompare(y));
        });
        table.tBodies[0].append(...rows);
      });
    });
  }

  // A click on a legend hides a network in all figures; another one shows it again.
  const hidden = new Set(), rules = document.head.appendChild(make("style", {}));
  const keys = all(".legend [data-m]").map((entry) => {
    const name = entry.dataset.m, key = button({ "data-m": name, "aria-pressed": true }, ...entry.childNodes);
    entry.replaceWith(key);
    on(key, "click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      const parts = [...hidden].map((one) => `main [data-m=${JSON.stringify(one)}]:not(button)`);
      rules.textContent = parts.length ? `${parts}{display:none!important}` : "";
      for (const one of keys) set(one, { "aria-pressed": !hidden.has(one.dataset.m) });
    });
    return key;
  });

  // Of a network at several temperatures one is shown, and a slider chooses which.
  for (const group of all(".temperatures")) {
    const steps = all("[data-t]", group), last = steps.length - 1, said = make("output", {});
    if (last < 1) continue;
    const slider = make("input", { type: "range", min: 0, max: last, value: last });
    const turn = () => {
      steps.forEach((step, at) => { step.hidden = at !== Number(slider.value); });
      said.textContent = steps[slider.value].dataset.t;
      set(slider, { "aria-valuetext": said.textContent });
    };
    on(slider, "input", turn);
    group.prepend(make("label", { class: "slider" }, "Temperature ", slider, said));
    turn();
  }

  // A figure as large as the window; Escape brings it back.
  const close = button({ class: "zoom" }, "Close"), dialog = make("dialog", { "aria-label": "Enlarged figure" }, close);
  document.body.append(tip, dialog);
  on(close, "click", () => dialog.close());
  for (const figure of all(".zooms")) {
    const open = button({ class: "zoom" }, "Enlarge"), parts = [...figure.childNodes];
    set(open, { "aria-label": `Enlarge: ${figure.querySelector("svg").getAttribute("aria-label")}` });
    figure.append(open);
    on(open, "click", () => {
      dialog.prepend(...parts);
      dialog.showModal();
      on(dialog, "close", () => figure.prepend(...parts), { once: true });
    });
  }
})();
