"""Labelling batches and single images."""
