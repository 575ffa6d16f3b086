// The labelling page. All that matters lives in the server: this shows its state (draw.js) and sends
// decisions.
"use strict";

const token = location.hash.slice(1);
const PAUSE = { key: 150, click: 300 };  // ms in which the chosen card is seen; a second click cancels
let state = null;     // what the server said last
let session = { command: "mlx_dpo data label", next_commands: [], next_note: "", guidelines: "" };
let texts = null;     // the two answers as they read now, as HTML, and in pieces (null: not asked yet)
let editing = false;
let comparing = false;  // whether differences are marked
let writing = false;  // whether the person asked to write a pair from scratch
let busy = false;     // a second key press must not decide the next pair unseen
let clicked = null;   // timer of a card that was clicked and is not sent yet
let hadSelection = false;  // whether text was selected before a click
let pressedAt = [0, 0];  // where on the screen a click began
const FORM = ["write-prompt", "write-chosen", "write-rejected", "write-kind"];
const drafts = {};    // what was typed into the form, by task; "" is the pair from scratch
let formOf = null;    // whose draft the form holds; null while it is closed
let shownAt = null;   // when the task was shown; null if the page was hidden since then
let times = [];       // seconds that decisions took

async function ask(path, body) {
  const options = { headers: { Authorization: `Bearer ${token}` }, cache: "no-store" };
  if (body) {
    options.method = "POST";
    options.headers["Content-Type"] = "application/json";
    options.body = JSON.stringify({ ...body, revision: state.revision });
  }
  let response, found;
  try {
    response = await fetch(path, options);
    found = await response.json();
  } catch {
    const lost = { "api/undo": "Nothing was undone. ", "api/show": "", "api/state": "" }[path];
    throw new Error(`${lost ?? "This decision was not saved. "}The program does not answer. ` +
      `Start it again: \`${session.command}\` and open the address it prints. ` +
      "All that was saved is still there.");
  }
  if (response.status === 409) show(found);
  if (!response.ok) throw new Error(found.error);
  return found;
}

async function send(path, body, pause = 0) {
  if (busy || !state) return;
  busy = true;
  const task = state.task;
  const took = shownAt === null ? Infinity : (performance.now() - shownAt) / 1000;
  try {
    const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
    const seen = new Promise((resolve) => { setTimeout(resolve, calm ? 0 : pause); });
    const [found] = await Promise.all([ask(path, body), seen]);
    if (path === "api/label" && task.is_choice) times.push(took);
    if (path === "api/write" || "ab".includes(body.verdict)) dropDraft();
    writing = false;
    show(found);
    $("status").textContent = found.saved;
    $("error").textContent = "";
  } catch (error) {
    $("status").textContent = "";
    $("error").textContent = error.message;
  } finally {
    mark(null);
    busy = false;
  }
}

function show(found) {
  state = found;
  editing = comparing = false;
  const task = state.task;
  texts = task && { a: task.a, b: task.b, html: task.html, pieces: null };
  shownAt = document.hidden ? null : performance.now();
  drawLengths(state.lengths);
  draw();
  focusTask();
}

function focusTask() {
  if (!$("write").hidden) $(state.task && !writing ? "write-chosen" : "write-prompt").focus();
  else if (!$("finished").hidden) $("finished-title").focus();
  else $("conversation").focus();
}

function mark(side) {
  clearTimeout(clicked);
  clicked = null;
  for (const each of ["a", "b"]) $(`${each}-card`).classList.toggle("chosen", each === side);
}

function keepEdits() {
  if (!editing) return;
  const [a, b] = [$("a-editor").value, $("b-editor").value];
  if (a !== texts.a || b !== texts.b) texts = { a, b, html: null, pieces: null };
}

async function askTexts() {
  const mine = texts;
  try {
    const found = await ask("api/show", { a: mine.a, b: mine.b });
    if (texts !== mine) return;
    Object.assign(mine, found);
    if (!editing) draw();
  } catch (error) {
    $("error").textContent = error.message;
  }
}

function toggleEditing() {
  keepEdits();
  editing = !editing;
  draw();
  if (editing) $("a-editor").focus();
  else $("conversation").focus();
  if (!editing && !texts.html) askTexts();
}

function toggleDifferences() {
  comparing = !comparing;
  draw();
  if (comparing && !texts.pieces) askTexts();
}

function decide(verdict, pause = PAUSE.key) {
  if (busy) return;
  keepEdits();
  if (state.task.is_choice) mark(verdict);
  send("api/label", { task: state.task.id, verdict, a: texts.a, b: texts.b },
    "ab".includes(verdict) && state.task.is_choice ? pause : 0);
}

// A click chooses, and is seen to; one that drags, selects text, clears a selection or begins a
// double click does not.
function onCard(side, event) {
  const selected = hadSelection || !getSelection().isCollapsed;
  const dragged = Math.hypot(event.clientX - pressedAt[0], event.clientY - pressedAt[1]) > 5;
  if (busy || editing || selected || dragged || event.detail > 1) return;
  mark(side);
  clicked = setTimeout(() => decide(side, 0), PAUSE.click);
}

function formValues() {
  return FORM.map((id) => $(id).value);
}

// The form as it was left for this task, or for the pair from scratch; null closes it.
function openForm(name) {
  if (name === formOf) return;
  if (formOf !== null) drafts[formOf] = formValues();
  formOf = name;
  const values = drafts[name] ?? [];
  FORM.forEach((id, place) => { $(id).value = values[place] ?? ""; });
}

function dropDraft() {
  if (formOf !== null) delete drafts[formOf];
  formOf = null;
}

function startWriting() {
  writing = true;
  draw();
  focusTask();
}

function stopWriting() {
  if (!writing) return;
  const isBegun = formValues().some((text) => text.trim());
  writing = false;
  draw();
  focusTask();
  if (isBegun) $("status").textContent = "Your draft is kept: w opens it again.";
}

function saveWriting(event) {
  event.preventDefault();
  const [chosen, rejected] = [$("write-chosen").value, $("write-rejected").value];
  if (state.task && !writing) {
    send("api/label", { task: state.task.id, verdict: "a", a: chosen, b: rejected });
  } else {
    send("api/write", {
      prompt: $("write-prompt").value, chosen, rejected, kind: $("write-kind").value });
  }
}

const keys = {
  1: "do-a", 2: "do-b", t: "do-tie", b: "do-bad", s: "do-skip", d: "do-differences", e: "do-edit",
  u: "do-undo", w: "do-write", g: "do-guidelines", "?": "do-keys" };

function press(name) {
  const button = name && $(name);
  if (!button || button.offsetParent === null || button.disabled) return false;
  button.click();
  return true;
}

function onKey(event) {
  if (event.isComposing || event.repeat) return;
  if (!busy) mark(null);
  const dialog = document.querySelector("dialog[open]");
  const key = event.key.toLowerCase();
  if (dialog) {
    if (keys[key] === `do-${dialog.id}`) dialog.close();
    return;
  }
  if (event.key === "Escape") {
    if (editing) toggleEditing();
    else if (!$("write").hidden) stopWriting();
    return;
  }
  const typing = event.target.matches("textarea, input");
  const command = event.ctrlKey || event.metaKey;
  if (event.key === "Enter" && command) {
    if (editing) toggleEditing();
    else if (!$("write").hidden) $("writing").requestSubmit();
    return;
  }
  if (typing || event.altKey) return;
  const isUndo = command && key === "z" && !event.shiftKey;
  if (isUndo ? press("do-undo") : !command && press(keys[key])) event.preventDefault();
}

function hasUnsaved() {
  keepEdits();
  const task = state && state.task;
  const edited = task && task.is_choice && (texts.a !== task.a || texts.b !== task.b);
  const forms = formOf === null ? drafts : { ...drafts, [formOf]: formValues() };
  const typed = Object.values(forms).some(([prompt, chosen]) => (prompt + chosen).trim());
  return Boolean(edited || typed);
}

for (const side of ["a", "b"]) {
  $(`${side}-card`).addEventListener("click", (event) => onCard(side, event));
  $(`do-${side}`).addEventListener("click", () => decide(side));
}
document.addEventListener("pointerdown", (event) => {
  pressedAt = [event.clientX, event.clientY];
  hadSelection = !getSelection().isCollapsed;
  if (!busy) mark(null);
});
for (const verdict of ["tie", "bad", "skip"]) {
  $(`do-${verdict}`).addEventListener("click", () => decide(verdict));
}
for (const name of ["guidelines", "keys"]) {
  $(`do-${name}`).addEventListener("click", () => $(name).showModal());
  $(name).addEventListener("close", focusTask);
}
$("do-differences").addEventListener("click", toggleDifferences);
$("do-edit").addEventListener("click", toggleEditing);
$("do-undo").addEventListener("click", () => send("api/undo", {}));
$("do-write").addEventListener("click", startWriting);
$("writing").addEventListener("submit", saveWriting);
$("write-cancel").addEventListener("click", stopWriting);
$("write-skip").addEventListener("click", () => decide("skip"));
document.addEventListener("keydown", onKey);
document.addEventListener("visibilitychange", () => { if (document.hidden) shownAt = null; });
window.addEventListener("beforeunload", (event) => { if (hasUnsaved()) event.preventDefault(); });
window.addEventListener("hashchange", () => location.reload());
ask("api/state").then((found) => {
  session = found;
  drawHtml($("guidelines-text"), session.guidelines);
  show(found);
  if (session.guidelines && state.revision === 1) $("guidelines").showModal();
}, (error) => {
  $("progress-text").textContent = "Not connected";
  $("error").textContent = error.message;
});
