"""Checks of everything a campaign rests on, each with what to do about it."""
