// Stripe's Payment Element: the card's fields are frames of Stripe's own, and nothing of them passes this page.
"use strict";

(() => {
  const form = document.getElementById("stripe");
  const button = form.querySelector("button");
  const trouble = document.getElementById("stripe-trouble");
  const { key, secret, language, return: returnUrl } = form.dataset;
  let isBusy = false;

  function say(words) {
    trouble.textContent = words;
    trouble.hidden = !words;
  }

  if (!window.Stripe) {
    say(trouble.dataset.unreachable);
    return;
  }

  const stripe = window.Stripe(key, { locale: language });
  const isDark = window.matchMedia("(prefers-color-scheme: dark)").matches;
  const elements = stripe.elements({ clientSecret: secret, appearance: { theme: isDark ? "night" : "stripe" } });
  const fields = elements.create("payment");
  fields.on("ready", () => {
    button.disabled = false;
  });
  fields.on("loaderror", () => say(trouble.dataset.unreachable));
  fields.mount("#stripe-fields");

  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    if (isBusy) {
      return;
    }
    isBusy = true;
    say("");
    const free = loopCheckout.busy(button);
    if (await loopCheckout.reloadIfMoved()) {
      return;
    }
    const { error } = await stripe.confirmPayment({
      elements,
      confirmParams: { return_url: returnUrl },
      redirect: "if_required",
    });
    if (error && error.type === "validation_error") {
      isBusy = false; // Stripe's fields say what is missing
      free();
    } else if (error && error.type === "api_connection_error") {
      isBusy = false;
      free();
      say(trouble.dataset.unreachable);
    } else {
      location.assign(returnUrl); // paid or not: Loop asks Stripe, and says it here
    }
  });
})();
