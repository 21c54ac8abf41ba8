"""The contract of a training method, the run folder, and the only training loop."""
