// Stands in for Stripe.js: as much of it as a checkout page uses, over the stand-in's own test cards.
"use strict";

window.Stripe = (key) => {
  let frame = null;

  function chosenCard() {
    return new Promise((resolve) => {
      const hear = (event) => {
        if (event.source === frame.contentWindow) {
          window.removeEventListener("message", hear);
          resolve(event.data.card);
        }
      };
      window.addEventListener("message", hear);
      frame.contentWindow.postMessage("collect", "https://js.stripe.com");
    });
  }

  return {
    elements: ({ clientSecret }) => ({
      clientSecret,
      create: () => {
        const hears = {};
        return {
          on: (name, hear) => {
            hears[name] = hear;
          },
          mount: (selector) => {
            frame = document.createElement("iframe");
            frame.title = "Secure payment input frame";
            frame.src = "https://js.stripe.com/fields.html";
            Object.assign(frame.style, { width: "100%", height: "6rem", border: "0" });
            frame.addEventListener("load", () => hears.ready && hears.ready());
            document.querySelector(selector).append(frame);
          },
        };
      },
    }),
    confirmPayment: async ({ elements, confirmParams }) => {
      const card = await chosenCard();
      if (!card) {
        return { error: { type: "validation_error", message: "Your card's number is incomplete." } };
      }
      const intent = elements.clientSecret.split("_secret_")[0];
      const sent = {
        key,
        client_secret: elements.clientSecret,
        payment_method: card,
        return_url: confirmParams.return_url,
      };
      let answer;
      try {
        answer = await fetch(`https://api.stripe.com/v1/payment_intents/${intent}/confirm`, {
          method: "POST",
          body: new URLSearchParams(sent),
        });
      } catch {
        return { error: { type: "api_connection_error", message: "We are experiencing issues connecting." } };
      }
      const body = await answer.json();
      if (body.error) {
        return { error: body.error };
      }
      if (body.status === "requires_action") {
        location.assign(body.next_action.redirect_to_url.url);
        return new Promise(() => {});
      }
      return { paymentIntent: body };
    },
  };
};
