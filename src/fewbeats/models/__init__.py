"""Networks, and moving weights into them."""
