"""Proof that a training which was interrupted ends where the uninterrupted one ends."""
