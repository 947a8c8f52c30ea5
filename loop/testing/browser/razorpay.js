// Stands in for Razorpay's checkout.js: a frame over the page that pays an order with the stand-in's test instruments.
"use strict";

window.Razorpay = class {
  constructor(options) {
    this.options = options;
  }

  open() {
    const { key, order_id: order, handler, modal } = this.options;
    const container = document.createElement("div");
    container.className = "razorpay-container";
    Object.assign(container.style, { position: "fixed", inset: "0", zIndex: "99999", background: "#000a" });
    const frame = document.createElement("iframe");
    frame.className = "razorpay-checkout-frame";
    frame.title = "Razorpay Checkout";
    frame.src = `https://api.razorpay.com/v1/checkout/public?${new URLSearchParams({ key, order })}`;
    container.append(frame);
    document.body.append(container);
    window.addEventListener("message", (event) => {
      if (event.source !== frame.contentWindow) {
        return;
      }
      if (event.data.razorpay_signature) {
        container.remove();
        handler(event.data);
      } else if (event.data === "closed") {
        container.remove();
        modal.ondismiss();
      }
    });
  }
};
