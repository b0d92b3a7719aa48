"""The daemon: the store, pages out, verdicts in, decisions, and the write-back."""
