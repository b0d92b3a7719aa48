"use strict";
// Asks for newer figures and puts the sections that changed into the page. The page is whole without it.
(() => {
  const EVERY = 5000;
  const main = document.querySelector("main");
  const connection = document.getElementById("connection");
  const pause = document.getElementById("pause");
  let version = main.dataset.version;
  let paused = false;
  const drawn = new Map();
  const parts = (page) => page.querySelectorAll("main > section, #top .state > p:first-child");
  const name = (part) => part.id || "moment";

  const localize = (root) => {
    for (const time of root.querySelectorAll("time")) {
      const options = { dateStyle: "medium", timeStyle: "short" };
      time.textContent = new Date(time.dateTime).toLocaleString(undefined, options);
    }
  };

  const say = (words) => {
    if (connection.textContent !== words) connection.textContent = words;
  };

  // keeps what the reader has opened, and where the focus is
  const replace = (old, fresh) => {
    const opened = [...old.querySelectorAll("details")].map((one) => one.open);
    fresh.querySelectorAll("details").forEach((one, place) => { one.open = Boolean(opened[place]); });
    const focusable = "a, summary, [tabindex]";
    const place = [...old.querySelectorAll(focusable)].indexOf(document.activeElement);
    localize(fresh);
    old.replaceWith(fresh);
    if (place >= 0) fresh.querySelectorAll(focusable)[place]?.focus({ preventScroll: true });
  };

  const redraw = async () => {
    const answer = await fetch("board", { headers: { Accept: "text/html" } });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    for (const fresh of parts(page)) {
      const html = fresh.outerHTML;
      const old = [...parts(document)].find((one) => name(one) === name(fresh));
      if (old && drawn.get(name(fresh)) !== html) replace(old, fresh);
      drawn.set(name(fresh), html);
    }
    version = page.querySelector("main").dataset.version;
  };

  const look = async () => {
    if (paused || document.hidden) return;
    try {
      const answer = await fetch("board.json", { headers: { "If-None-Match": `"${version}"` } });
      if (answer.status !== 304) {
        if (!answer.ok) throw new Error((await answer.json()).error);
        await redraw();
      }
      const health = await (await fetch("health")).json();
      say(health.ready ? "Up to date." : `The daemon has stopped for now: ${health.reason}.`);
    } catch (error) {
      say("No connection to the daemon; these are the last figures.");
    }
  };

  for (const part of parts(document)) drawn.set(name(part), part.outerHTML);
  localize(document);
  pause.hidden = false;
  pause.addEventListener("click", () => {
    paused = !paused;
    pause.setAttribute("aria-pressed", String(paused));
    say(paused ? "Paused." : "");
    look();
  });
  document.addEventListener("visibilitychange", look);
  setInterval(look, EVERY);
  look();
})();
