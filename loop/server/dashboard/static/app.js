// Shows times in the viewer's own zone, keeps a form from being sent twice by a double click, and copies.
"use strict";

(() => {
  const forms = {
    full: { day: "numeric", month: "short", year: "numeric", hour: "2-digit", minute: "2-digit", timeZoneName: "short" },
    brief: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit" },
    step: { day: "numeric", month: "short", hour: "2-digit", minute: "2-digit", second: "2-digit" },
    day: { day: "numeric", month: "short", year: "numeric" },
  };

  function localise(root) {
    for (const element of root.querySelectorAll("time[data-shown]")) {
      const form = forms[element.dataset.shown];
      const moment = new Date(element.dateTime);
      if (form === undefined || Number.isNaN(moment.getTime())) continue;
      element.title = element.dateTime.replace("T", " ").replace(/\.\d+Z$/, " UTC");
      element.textContent = moment.toLocaleString("en-GB", { ...form, hourCycle: "h23" });
      delete element.dataset.shown;
    }
  }

  localise(document);
  for (const swapped of ["htmx:after:swap", "loop:shown"]) document.addEventListener(swapped, () => localise(document));

  // On a phone the places are a row that scrolls: the one that is open may lie beyond its edge.
  document.querySelector(".places [aria-current]")?.scrollIntoView({ block: "nearest", inline: "center" });

  function offerCopies() {
    if (!navigator.clipboard) return;
    for (const button of document.querySelectorAll("button[data-copies]")) button.hidden = false;
  }

  offerCopies();
  document.addEventListener("htmx:after:swap", offerCopies);
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("button[data-copies]");
    if (!button) return;
    await navigator.clipboard.writeText(document.getElementById(button.dataset.copies).value);
    button.firstChild.data = "Copied";
  });

  document.addEventListener("submit", (event) => {
    if (event.target.method !== "post") return;
    if (event.target.dataset.sent) event.preventDefault();
    event.target.dataset.sent = "yes";
  });
  for (const button of document.querySelectorAll("button[data-prints]")) {
    button.hidden = false;
    button.addEventListener("click", () => print());
  }

  // A page that the browser kept is shown again by its back button.
  addEventListener("pageshow", () => {
    for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  });
})();
