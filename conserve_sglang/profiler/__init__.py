"""Measures what an SGLang worker takes, in time and energy, and writes it down as a profile."""
