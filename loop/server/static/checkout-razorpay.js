// Razorpay's Checkout opens over the page; where its script is not to be had, the form leads to Razorpay's own page.
"use strict";

(() => {
  const form = document.getElementById("razorpay");
  const button = form.querySelector("button");
  let isBusy = false;

  function open() {
    const options = JSON.parse(form.dataset.options);
    const free = loopCheckout.busy(button);
    options.handler = (signed) => {
      const back = new URL(form.dataset.return);
      for (const name of ["razorpay_payment_id", "razorpay_order_id", "razorpay_signature"]) {
        back.searchParams.set(name, signed[name] || "");
      }
      location.assign(back);
    };
    options.modal = {
      // Closed without a payment, or so it seems: Loop asks Razorpay, and says here how it stands.
      ondismiss: () => {
        free();
        location.assign(form.dataset.return);
      },
    };
    new window.Razorpay(options).open();
  }

  form.addEventListener("submit", async (event) => {
    if (!window.Razorpay) {
      return;
    }
    event.preventDefault();
    if (isBusy) {
      return;
    }
    isBusy = true;
    if (!(await loopCheckout.reloadIfMoved())) {
      open();
    }
  });
})();
