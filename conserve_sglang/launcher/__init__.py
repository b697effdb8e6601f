"""Starts a tier map's workers and router, keeps them up, takes them down."""
