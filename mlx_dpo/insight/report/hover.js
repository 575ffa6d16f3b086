"use strict";
/* Shows the values below the pointer. Without it a browser shows the same from <title>. */
(() => {
  const SVG = "http://www.w3.org/2000/svg";
  const tip = document.createElement("div");
  tip.className = "tip";
  tip.hidden = true;
  document.body.append(tip);
  let shown = null;
  let marks = [];

  for (const hit of document.querySelectorAll(".plot .hit")) {
    const title = hit.querySelector("title");
    hit.dataset.told = title.textContent;
    title.remove();
  }

  function add(parent, name, attributes) {
    const mark = document.createElementNS(SVG, name);
    for (const [key, value] of Object.entries(attributes)) mark.setAttribute(key, value);
    parent.append(mark);
    marks.push(mark);
  }

  function clear() {
    for (const mark of marks) mark.remove();
    marks = [];
    shown = null;
    tip.hidden = true;
  }

  function draw(hit) {
    const { x, dots } = hit.dataset;
    if (x === undefined) return;
    const [top, height] = [hit.y.baseVal.value, hit.height.baseVal.value];
    const parent = hit.parentNode;
    add(parent, "path", { d: `M${x} ${top}V${top + height}`, class: "level", "pointer-events": "none" });
    for (const dot of dots.split(" ").filter(Boolean)) {
      const [series, y] = dot.split(":");
      add(parent, "circle", { cx: x, cy: y, r: 3.5, class: `f${series}`, "pointer-events": "none" });
    }
  }

  function show(hit, left, top) {
    if (hit !== shown) {
      clear();
      shown = hit;
      draw(hit);
      tip.textContent = hit.dataset.told;
      tip.hidden = false;
    }
    const [width, height] = [tip.offsetWidth, tip.offsetHeight];
    const beside = left + 14 + width < innerWidth ? left + 14 : left - 14 - width;
    tip.style.left = `${Math.max(4, beside)}px`;
    tip.style.top = `${Math.max(4, Math.min(top - height / 2, innerHeight - height - 4))}px`;
  }

  function look(event) {
    const hit = event.target instanceof Element ? event.target.closest(".hit") : null;
    if (hit) show(hit, event.clientX, event.clientY);
    else if (shown) clear();
  }

  document.addEventListener("pointermove", look);
  document.addEventListener("pointerdown", look);
  document.addEventListener("scroll", clear, { passive: true });
})();
