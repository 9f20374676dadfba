// SPDX-License-Identifier: Apache-2.0
// What the page can do beyond being read: points answer, columns sort, networks hide, figures grow.
"use strict";
(() => {
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  const make = (tag, attributes, ...content) => {
    const node = document.createElement(tag);
    for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
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
  document.addEventListener("pointerover", answer);
  document.addEventListener("focusin", answer);
  document.addEventListener("scroll", () => answer({ target: document.activeElement }), true);

  // A figure takes the focus; arrows go through its marks, up and down by data-marks of them.
  for (const figure of all("[data-marks]")) {
    for (const title of all("* > title", figure)) {
      title.parentNode.dataset.tip = title.textContent;
      title.remove();
    }
    for (const mark of all("[title]", figure)) {
      mark.dataset.tip = mark.title;
      mark.removeAttribute("title");
    }
    figure.setAttribute("role", "group");
    figure.setAttribute("tabindex", 0);
    figure.addEventListener("keydown", (event) => {
      const row = Number(figure.dataset.marks) || 1;
      const step = { ArrowRight: 1, ArrowDown: row, ArrowLeft: -1, ArrowUp: -row }[event.key];
      const marks = all(".mark", figure).filter((mark) => mark.getClientRects().length);
      if (!step || !marks.length) return;
      event.preventDefault();
      const from = marks.indexOf(document.activeElement), at = from < 0 ? 0 : from + step + marks.length;
      const next = marks[at % marks.length];
      for (const [name, value] of [["tabindex", -1], ["role", "img"], ["aria-label", textOf(next)]]) {
        next.setAttribute(name, value);
      }
      next.focus();
    });
  }

  // A header sorts its column by data-v: numbers from the largest, words from A, nothing last.
  for (const table of all("table.sortable")) {
    const heads = all("thead tr:last-child th", table);
    heads.forEach((head, column) => {
      head.setAttribute("aria-sort", "none");
      const click = button({}, ...head.childNodes);
      head.append(click);
      click.addEventListener("click", () => {
        const value = (row) => row.cells[column].dataset.v || "";
        const rows = [...table.tBodies[0].rows], numbers = !rows.some((row) => Number.isNaN(Number(value(row))));
        const orders = numbers ? ["descending", "ascending"] : ["ascending", "descending"];
        const order = orders[Number(head.getAttribute("aria-sort") === orders[0])];
        heads.forEach((one) => one.setAttribute("aria-sort", one === head ? order : "none"));
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
    key.addEventListener("click", () => {
      if (!hidden.delete(name)) hidden.add(name);
      const parts = [...hidden].map((one) => `main [data-m=${JSON.stringify(one)}]:not(button)`);
      rules.textContent = parts.length ? `${parts}{display:none!important}` : "";
      for (const one of keys) one.setAttribute("aria-pressed", !hidden.has(one.dataset.m));
    });
    return key;
  });

  // A figure as large as the window; Escape brings it back.
  const close = button({ class: "zoom" }, "Close"), dialog = make("dialog", { "aria-label": "Enlarged figure" }, close);
  document.body.append(tip, dialog);
  close.addEventListener("click", () => dialog.close());
  for (const figure of all(".zooms")) {
    const open = button({ class: "zoom" }, "Enlarge"), parts = [...figure.childNodes];
    const name = figure.querySelector("svg").getAttribute("aria-label");
    open.setAttribute("aria-label", `Enlarge: ${name}`);
    figure.append(open);
    open.addEventListener("click", () => {
      dialog.prepend(...parts);
      dialog.showModal();
      dialog.addEventListener("close", () => figure.prepend(...parts), { once: true });
    });
  }
})();
