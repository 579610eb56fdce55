"""Whole experiments over both stages: manifests, engines, live prediction."""
