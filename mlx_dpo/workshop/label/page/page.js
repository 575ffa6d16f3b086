// The labelling page. All that matters lives in the server: this shows its state and sends decisions.
// Texts of prompts and answers only ever go through textContent and value, never into HTML.
"use strict";

const $ = (id) => document.getElementById(id);
const token = location.hash.slice(1);
let state = null;     // what the server said last
let command = "mlx_dpo data label";  // what starts the program again
let texts = null;     // the two answers as they read now
let editing = false;
let writing = false;  // whether the person asked to write a pair from scratch
let busy = false;     // a second key press must not decide the next pair unseen

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
    const lost = path === "api/undo" ? "Nothing was undone. " : "This decision was not saved. ";
    throw new Error(`${body ? lost : ""}The program does not answer. Start it again: \`${command}\` ` +
      "and open the address it prints. All that was saved is still there.");
  }
  if (response.status === 409) show(found);
  if (!response.ok) throw new Error(found.error);
  return found;
}

async function send(path, body) {
  if (busy || !state) return;
  busy = true;
  try {
    const found = await ask(path, body);
    writing = false;
    $("writing").reset();
    show(found);
    $("status").textContent = found.saved;
    $("error").textContent = "";
  } catch (error) {
    $("status").textContent = "";
    $("error").textContent = error.message;
  } finally {
    busy = false;
  }
}

function show(found) {
  state = found;
  editing = false;
  const task = state.task;
  texts = task && { a: task.a, b: task.b };
  $("progress").max = Math.max(1, state.total);
  $("progress").value = state.total ? state.done : 1;
  const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
  $("progress-text").textContent = [
    state.total && `${state.done} of ${state.total} done`,
    state.total && `${counted(state.pairs, "pair")} saved`,
    state.ties && counted(state.ties, "tie"),
    state.skipped && `${state.skipped} skipped`,
    (state.by_hand || !state.total) && `${counted(state.by_hand, "pair")} written by hand`,
    state.elsewhere && `${counted(state.elsewhere, "pair")} from other files`,
  ].filter(Boolean).join(", ");
  showLengths(state.lengths);
  draw();
  focusTask();
}

function showLengths(lengths) {
  const decided = lengths.longer + lengths.shorter;
  const enough = decided >= lengths.enough;
  let text = enough
    ? `Length in characters: the better answer is longer in ${lengths.longer} of ${decided}`
    : `Length in characters: shown from ${lengths.enough} pairs that differ, ${decided} so far`;
  if (lengths.leans) text += `. A model would learn “${lengths.leans}” from this`;
  $("lengths-text").textContent = text;
  const percent = enough ? Math.round(100 * lengths.share) : 50;
  $("lengths").setAttribute("aria-valuenow", percent);
  $("lengths-mark").hidden = !enough;
  $("lengths-mark").style.left = `${percent}%`;
  $("lengths").parentElement.classList.toggle("leans", Boolean(lengths.leans));
}

function draw() {
  const task = state.task;
  const choosing = Boolean(task && task.is_choice && !writing);
  const writeTask = Boolean(task && !task.is_choice && !writing);
  const onForm = writing || writeTask;
  $("choose").hidden = !choosing;
  $("write").hidden = !onForm;
  $("finished").hidden = onForm || choosing;
  $("actions").hidden = writing;
  $("actions").classList.toggle("only-write", !choosing);
  for (const button of document.querySelectorAll(".choice")) button.hidden = !choosing;
  $("do-undo").disabled = !state.can_undo;
  if (choosing) drawChoice(task);
  if (onForm) drawForm(writeTask ? task : null);
  $("finished-text").textContent = state.total
    ? `You have been through all ${state.total}. Your pairs are in ${state.out}; you may close ` +
      "this page, or write pairs of your own." +
      (state.skipped ? " What was skipped comes again when the program is started again." : "")
    : `Write a pair of your own: press w. Pairs go to ${state.out}.`;
  $("finished-title").textContent = state.total ? "Nothing left to choose" : "No file was given";
}

function drawChoice(task) {
  drawConversation($("conversation"), task.prompt);
  $("actions").classList.toggle("editing", editing);
  $("do-edit").setAttribute("aria-pressed", String(editing));
  $("do-edit").setAttribute("aria-keyshortcuts", editing ? "Escape" : "e");
  $("do-edit-name").textContent = editing ? "Done editing:" : "Edit";
  $("do-edit-key").textContent = editing ? "Esc" : "e";
  for (const side of ["a", "b"]) {
    $(`${side}-text`).textContent = texts[side];
    $(`${side}-text`).hidden = editing;
    $(`${side}-editor`).hidden = !editing;
    $(`${side}-editor`).value = texts[side];
    $(`${side}-edited`).hidden = texts[side] === task[side];
  }
}

function drawConversation(place, turns) {
  place.replaceChildren(...turns.map((turn) => {
    const box = document.createElement("div");
    const role = document.createElement("div");
    const text = document.createElement("div");
    box.className = "turn";
    role.className = "role";
    text.className = "text";
    text.dir = "auto";
    role.textContent = turn.role;
    text.textContent = turn.content;
    box.append(role, text);
    return box;
  }));
}

function drawForm(task) {
  drawConversation($("write-conversation"), task ? task.prompt : []);
  $("write-title").textContent = task ? "Write a better and a worse answer" : "Write a pair";
  $("write-own").hidden = $("write-kinds").hidden = $("write-cancel").hidden = Boolean(task);
  $("write-skip").hidden = !task;
  if (task && !$("write-rejected").value) $("write-rejected").value = task.a || task.b;
}

function focusTask() {
  if (!$("write").hidden) $(state.task && !writing ? "write-chosen" : "write-prompt").focus();
  else if (!$("finished").hidden) $("finished-title").focus();
  else $("conversation").focus();
}

function keepEdits() {
  if (editing) for (const side of ["a", "b"]) texts[side] = $(`${side}-editor`).value;
}

function toggleEditing() {
  keepEdits();
  editing = !editing;
  draw();
  if (editing) $("a-editor").focus();
  else $("conversation").focus();
}

function decide(verdict) {
  keepEdits();
  send("api/label", { task: state.task.id, verdict, ...texts });
}

function startWriting() {
  writing = true;
  $("writing").reset();
  draw();
  focusTask();
}

function stopWriting() {
  if (!state.task || state.task.is_choice || writing) {
    writing = false;
    $("writing").reset();
    draw();
    focusTask();
  }
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
  1: "do-a", 2: "do-b", t: "do-tie", s: "do-skip", e: "do-edit", u: "do-undo", w: "do-write" };

function onKey(event) {
  if (event.isComposing || event.repeat) return;
  if (event.key === "Escape") {
    if (editing) toggleEditing();
    else if (!$("write").hidden) stopWriting();
    return;
  }
  const typing = event.target.matches("textarea, input");
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    if (editing) toggleEditing();
    else if (!$("write").hidden) $("writing").requestSubmit();
    return;
  }
  if (typing || event.ctrlKey || event.metaKey || event.altKey) return;
  const button = keys[event.key.toLowerCase()] && $(keys[event.key.toLowerCase()]);
  if (button && button.offsetParent !== null && !button.disabled) {
    event.preventDefault();
    button.click();
  }
}

function hasUnsaved() {
  keepEdits();
  const task = state && state.task;
  const edited = task && task.is_choice && (texts.a !== task.a || texts.b !== task.b);
  const typed = !$("write").hidden &&
    ["write-prompt", "write-chosen"].some((id) => $(id).value.trim());
  return Boolean(edited || typed);
}

$("do-a").addEventListener("click", () => decide("a"));
$("do-b").addEventListener("click", () => decide("b"));
$("do-tie").addEventListener("click", () => decide("tie"));
$("do-skip").addEventListener("click", () => decide("skip"));
$("do-edit").addEventListener("click", toggleEditing);
$("do-undo").addEventListener("click", () => send("api/undo", {}));
$("do-write").addEventListener("click", startWriting);
$("writing").addEventListener("submit", saveWriting);
$("write-cancel").addEventListener("click", stopWriting);
$("write-skip").addEventListener("click", () => decide("skip"));
document.addEventListener("keydown", onKey);
window.addEventListener("beforeunload", (event) => { if (hasUnsaved()) event.preventDefault(); });
window.addEventListener("hashchange", () => location.reload());
ask("api/state").then((found) => {
  command = found.command;
  show(found);
}, (error) => {
  $("progress-text").textContent = "Not connected";
  $("error").textContent = error.message;
});
