// How the state is drawn. Texts of prompts and answers go through textContent and value; the one
// HTML is what the server has rendered from Markdown and cleaned (rendering.py).
"use strict";

const $ = (id) => document.getElementById(id);
const counted = (n, what) => `${n} ${what}${n === 1 ? "" : "s"}`;
const EVENTS = { pair: "Better:", tie: "Tie", bad: "Both bad", skip: "Skipped" };
const IDLE = 300;  // seconds; who takes longer was away
const policy = { createHTML: (html) => html };
const rendered = window.trustedTypes ? trustedTypes.createPolicy("rendered", policy) : policy;

function make(tag, name, text) {
  const element = document.createElement(tag);
  if (name) element.className = name;
  if (text !== undefined) element.textContent = text;
  return element;
}

function drawHtml(place, html) {
  place.classList.add("rendered");
  place.innerHTML = rendered.createHTML(html);
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
  $("actions").classList.toggle("editing", choosing && editing);
  for (const button of document.querySelectorAll(".choice")) button.hidden = !choosing;
  $("do-undo").disabled = !state.can_undo;
  $("do-guidelines").hidden = $("keys-guidelines").hidden = !session.guidelines;
  if (choosing) drawChoice(task);
  openForm(onForm ? (writeTask ? task.id : "") : null);
  if (onForm) drawForm(writeTask ? task : null);
  drawProgress();
  drawFinished();
  drawLast();
}

function drawProgress() {
  $("progress").max = Math.max(1, state.total);
  $("progress").value = state.total ? state.done : 1;
  $("progress-text").textContent = [
    state.total && `${state.done} of ${state.total} done`,
    state.total && `${counted(state.pairs, "pair")} saved`,
    state.ties && counted(state.ties, "tie"),
    state.bad && `${state.bad} both bad`,
    state.skipped && `${state.skipped} skipped`,
    (state.by_hand || !state.total) && `${counted(state.by_hand, "pair")} written by hand`,
    state.elsewhere && `${counted(state.elsewhere, "pair")} from other files`,
  ].filter(Boolean).join(", ");
  $("time-left").textContent = timeLeft(times, state.total - state.done - state.skipped);
}

// From the median of the last twenty decisions: one that took long says little about the next.
function timeLeft(seconds, left) {
  const last = seconds.filter((each) => each <= IDLE).slice(-20).sort((x, y) => x - y);
  if (last.length < 5 || left < 1) return "";
  const minutes = Math.round((left * last[Math.floor(last.length / 2)]) / 60);
  if (minutes < 1) return "less than a minute left";
  if (minutes < 60) return `about ${counted(minutes, "minute")} left`;
  return `about ${Math.floor(minutes / 60)} h ${minutes % 60} min left`;
}

function drawLengths(lengths) {
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

function drawChoice(task) {
  drawConversation($("conversation"), task.prompt);
  $("kind").textContent = task.kind;
  $("kind").hidden = !task.kind;
  $("do-edit").setAttribute("aria-pressed", String(editing));
  $("do-edit").setAttribute("aria-keyshortcuts", editing ? "Escape" : "e");
  $("do-edit-name").textContent = editing ? "Done" : "Edit";
  $("do-edit-key").textContent = editing ? "Esc" : "e";
  $("do-differences").hidden = editing;
  $("do-differences").setAttribute("aria-pressed", String(comparing));
  for (const side of ["a", "b"]) {
    drawAnswer(side);
    $(`${side}-text`).hidden = editing;
    $(`${side}-editor`).hidden = !editing;
    $(`${side}-editor`).value = texts[side];
    $(`${side}-edited`).hidden = texts[side] === task[side];
  }
}

function drawAnswer(side) {
  const place = $(`${side}-text`);
  if (comparing && texts.pieces) {
    place.classList.remove("rendered");
    place.replaceChildren(...texts.pieces[side].map(
      ([text, isDifferent]) => (isDifferent ? make("mark", "", text) : text)));
  } else if (texts.html) {
    drawHtml(place, texts.html[side]);
  } else {  // edited a moment ago
    place.classList.remove("rendered");
    place.textContent = texts[side];
  }
}

function drawConversation(place, turns) {
  place.replaceChildren(...turns.map((turn) => {
    const box = make("div", "turn");
    const text = make("div", "text");
    text.dir = "auto";
    drawHtml(text, turn.html);
    box.append(make("div", "role", turn.role), text);
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

function drawFinished() {
  const pairs = state.pairs + state.by_hand + state.elsewhere;
  const saved = pairs ? `${counted(pairs, "pair")} saved in ${state.out}` : "There are no pairs yet";
  $("finished-title").textContent = state.total ? "Nothing left to choose" : "No file was given";
  $("finished-text").textContent = state.total
    ? `You have been through all ${state.total}. ${saved}; you may close this page, or write ` +
      "pairs of your own." + (state.bad
        ? " Where both were bad there is no pair: sample other answers, or write a better one." : "") +
      (state.skipped ? " What was skipped comes again when the program is started again." : "")
    : `Write a pair of your own: press w. Pairs go to ${state.out}.`;
  $("next").hidden = !pairs;
  $("next-commands").textContent = session.next_commands.join("\n");
  $("next-note").textContent = session.next_note;
}

function drawLast() {
  $("last").hidden = !state.last.length;
  $("last-list").replaceChildren(...state.last.map((each) => {
    const item = make("li");
    const more = make("details");
    const title = make("summary");
    const question = each.question || "a task of another file";
    const better = each.event === "pair" ? ` “${each.texts[0].slice(0, 80)}” to` : "";
    title.append(make("b", "", EVENTS[each.event]), `${better} ${question.slice(0, 120)}`);
    const names = each.event === "pair" ? ["Better", "Worse"] : ["Answer", "Answer"];
    more.append(title, ...each.texts.flatMap(
      (text, place) => [make("div", "role", names[place]), make("div", "text", text)]));
    const again = make("button", "", each.has_task ? "Decide again" : "Take back");
    again.setAttribute("aria-label", `${again.textContent}: ${question.slice(0, 120)}`);
    again.addEventListener("click", () => send("api/undo", { number: each.number }));
    item.append(more, again);
    return item;
  }));
}
