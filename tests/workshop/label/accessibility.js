// Returns what a person who can't see well, or holds a phone, would trip over.
const visible = (e) => e.offsetParent !== null || getComputedStyle(e).position === "fixed";
const all = [...document.body.querySelectorAll("*")].filter((e) => e.getClientRects().length);
const numbers = (color) => color.match(/[\d.]+/g).map(Number);
const ground = (e) => {
  for (; e; e = e.parentElement) {
    const color = getComputedStyle(e).backgroundColor;
    if (numbers(color).length === 3 || numbers(color)[3] > 0) return color;
  }
  return "rgb(255, 255, 255)";
};
const light = (color) => {
  const [r, g, b] = numbers(color).map((c) => c / 255)
    .map((c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const contrast = (e) => {
  const [x, y] = [light(getComputedStyle(e).color), light(ground(e))].sort((p, q) => q - p);
  return (x + 0.05) / (y + 0.05);
};
const ownText = (e) => [...e.childNodes].some((n) => n.nodeType === 3 && n.data.trim());
const fields = all.filter((e) => e.matches("button, input, textarea, progress, [role=meter]"));
const name = (e) => e.labels?.[0]?.textContent || e.textContent || e.getAttribute("aria-label") ||
  document.getElementById(e.getAttribute("aria-labelledby"))?.textContent;
const tag = (e) => e.id || e.className || e.tagName;
return {
  unnamed: fields.filter((e) => !name(e)?.trim()).map(tag),
  pale: all.filter((e) => ownText(e) && contrast(e) < 4.5).map((e) => `${tag(e)} ${contrast(e)}`),
  small: fields.filter((e) => e.matches("button") && e.getBoundingClientRect().height < 44).map(tag),
  sideways: document.documentElement.scrollWidth - window.innerWidth > 0 ? 1 : 0,
};
