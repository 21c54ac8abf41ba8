"""Other models' labels, refined over rounds: each learns from the masks of the last and labels anew."""
