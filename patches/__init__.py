"""Manifests of the hooked SGLang functions, one folder per supported version."""
