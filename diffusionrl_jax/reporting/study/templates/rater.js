"use strict";
const state = JSON.parse(document.getElementById("state").textContent);
const element = (name) => document.getElementById(name);
const kept = `study/${state.study}/${state.rater}`;
const answers = { ...state.answers };
const KEYS = { ArrowLeft: "left", ArrowDown: "tie", ArrowRight: "right" };
const LARGEST_SMALL = 128; // Pictures of fewer pixels are shown with hard edges.
const PAUSE = 300; // Milliseconds in which the second half of a double click is no answer.
let current = null; // The number of the question whose pictures are there to be judged.

function say(text, wrong = false) {
  element("status").textContent = text;
  element("status").classList.toggle("wrong", wrong);
}

function enable(ready) {
  for (const button of document.querySelectorAll("[data-choice]")) button.disabled = !ready;
}

async function picture(address) {
  const image = new Image();
  image.src = address;
  await image.decode();
  return image;
}

const both = (asked) => Promise.all([picture(asked.left), picture(asked.right)]);

async function next() {
  current = null;
  enable(false);
  const count = state.questions.length;
  const open = [...Array(count).keys()].filter((number) => !(number in answers));
  element("asked").hidden = open.length === 0;
  element("done").hidden = open.length > 0;
  offerFile(count - open.length);
  if (open.length === 0) return;
  const [number, following] = open;
  const asked = state.questions[number];
  element("progress").max = count;
  element("progress").value = count - open.length;
  element("count").textContent = `${count - open.length + 1} of ${count}`;
  try {
    const [left, right] = await both(asked);
    for (const [side, image] of Object.entries({ left, right })) {
      element(side).src = image.src;
      element(side).classList.toggle("small", image.naturalWidth <= LARGEST_SMALL);
    }
  } catch {
    say("The pictures did not come. Reload the page to go on where you were.", true);
    return;
  }
  element("prompt").textContent = asked.prompt;
  await new Promise((resolve) => setTimeout(resolve, PAUSE));
  current = number;
  enable(true);
  if (following !== undefined) both(state.questions[following]).catch(() => {});
}

// Returns the choice that counts, which is the first one; it is on the server's disk.
async function send(number, choice) {
  const response = await fetch(String(number), {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ choice }),
    signal: AbortSignal.timeout(30000),
  });
  if (!response.ok && response.status !== 409) throw new Error(response.statusText);
  return (await response.json()).choice;
}

function keep(number, choice) {
  try {
    localStorage.setItem(kept, JSON.stringify({ ...answers, [number]: choice }));
  } catch {
    say("This browser keeps nothing: save the file before you close the page.", true);
  }
  return choice;
}

async function choose(choice) {
  if (current === null) return;
  const number = current;
  current = null;
  enable(false);
  say("");
  try {
    answers[number] = state.served ? await send(number, choice) : keep(number, choice);
  } catch {
    say("This answer was not saved. Please give it again.", true);
    current = number;
    enable(true);
    return;
  }
  await next();
}

function offerFile(count) {
  if (state.served) return;
  element("file").hidden = count === 0;
  element("send").textContent = `(${count} of ${state.questions.length}) and send it back.`;
  const text = JSON.stringify({ study: state.study, rater: state.rater, answers }, null, 1);
  URL.revokeObjectURL(element("save").href);
  element("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("save").download = `votes_of_rater_${state.number}.json`;
}

for (const button of document.querySelectorAll("[data-choice]")) {
  button.addEventListener("click", () => choose(button.dataset.choice));
}
document.addEventListener("keydown", (event) => {
  if (!(event.key in KEYS) || event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
  event.preventDefault();
  choose(KEYS[event.key]);
});
if (!state.served) {
  try {
    Object.assign(answers, JSON.parse(localStorage.getItem(kept)));
  } catch {
    // There is nothing, or nothing that can be read.
  }
}
next();
