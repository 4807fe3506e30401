"""What is measured: one program each, run in a process of its own, as its users would write it."""
