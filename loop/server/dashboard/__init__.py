"""The dashboard: pages on which merchants see their payments and act on them."""
