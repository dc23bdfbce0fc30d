"""Networks, and nothing about training them."""
