"""What can be asked of fewbeats: a command is a dataclass with `run()`, in Python, YAML and on the shell."""
