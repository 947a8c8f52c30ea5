// What every checkout page does with script: no double click, no stale page, and news of a payment under way.
"use strict";

const loopCheckout = (() => {
  const POLL_MS = 3000;
  const POLLS_MAX = 200;
  const main = document.querySelector("main.checkout");

  // Tell whether the session has moved on since this page was made: paid in another tab, expired, cancelled.
  async function hasMoved() {
    if (!main) {
      return false;
    }
    try {
      const answer = await fetch(`${location.pathname.replace(/\/$/, "")}/state`, { cache: "no-store" });
      if (!answer.ok) {
        return false;
      }
      const now = await answer.json();
      return now.face !== main.dataset.face || now.attempt !== main.dataset.attempt;
    } catch {
      return false; // no connection: what the customer does next will say so
    }
  }

  async function reloadIfMoved() {
    const moved = await hasMoved();
    if (moved) {
      location.reload();
    }
    return moved;
  }

  // Let a button be pressed once, and say that something happens; return what makes it usable again.
  function busy(button) {
    const words = button.textContent;
    button.textContent = button.dataset.busy || words;
    button.setAttribute("aria-disabled", "true");
    return () => {
      button.textContent = words;
      button.removeAttribute("aria-disabled");
    };
  }

  function once(form) {
    let isSent = false;
    form.addEventListener("submit", (event) => {
      if (isSent) {
        event.preventDefault();
        return;
      }
      isSent = true;
      if (event.submitter) {
        busy(event.submitter);
      }
    });
  }

  function poll(left) {
    setTimeout(async () => {
      if (!(await reloadIfMoved()) && left > 1) {
        poll(left - 1);
      }
    }, POLL_MS);
  }

  document.querySelectorAll("form[data-once]").forEach(once);
  const notice = document.querySelector("[role=alert][data-notice]");
  if (notice) {
    notice.focus();
  }
  if (main && main.dataset.face === "processing") {
    poll(POLLS_MAX);
  }
  window.addEventListener("pageshow", (event) => {
    if (event.persisted) {
      location.reload(); // the back button has brought a page of before
    }
  });
  document.addEventListener("visibilitychange", () => {
    if (document.visibilityState === "visible") {
      reloadIfMoved();
    }
  });
  return { busy, reloadIfMoved };
})();
