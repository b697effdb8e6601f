"""Profiles that come with the package: one YAML head and one CSV of points each."""
