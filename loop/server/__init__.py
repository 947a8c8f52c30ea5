"""HTTP: the API, the checkout page and the processors' webhooks."""
