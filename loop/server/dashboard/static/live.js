// Shows a page anew when something of it has changed; without this script it stays as it was loaded.
"use strict";

(() => {
  const REST_MS = 2000;
  let root = document.querySelector("[data-live]");
  if (root === null || typeof EventSource === "undefined") return;
  const subject = root.dataset.live; // an order's id, or nothing for a page that any change concerns
  let source = null;
  let timer = null;

  // What somebody is filling in, or has opened to read, is not taken from under their hands.
  const isInUse = () =>
    root.querySelector("form :focus, details[open] form, [data-sent]") !== null || String(getSelection()) !== "";

  async function show() {
    timer = null;
    root = document.querySelector("[data-live]");
    if (isInUse()) return wait();
    const answer = await fetch(location.href, { headers: { Accept: "text/html" } });
    if (!answer.ok || answer.redirected) return;
    const fresh = new DOMParser().parseFromString(await answer.text(), "text/html").querySelector("[data-live]");
    if (fresh === null || isInUse()) return;
    const folds = new Map([...root.querySelectorAll("details[id]")].map((each) => [each.id, each.open]));
    root.replaceWith(fresh);
    document.dispatchEvent(new CustomEvent("loop:shown"));
    for (const each of fresh.querySelectorAll("details[id]")) each.open = folds.get(each.id) ?? each.open;
  }

  function wait() {
    if (timer === null && !document.hidden) timer = setTimeout(() => show().catch(() => {}), REST_MS);
  }

  function listen() {
    source = new EventSource("/dashboard/live");
    source.addEventListener("change", (event) => {
      const { orders } = JSON.parse(event.data);
      if (subject === "" || orders.length === 0 || orders.includes(subject)) wait();
    });
  }

  // A browser opens few connections to one host: tabs that nobody looks at hold none.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) {
      source?.close();
      source = null;
    } else if (source === null) {
      listen();
      wait();
    }
  });
  if (!document.hidden) listen();
})();
