"""What every process of Darkroom knows: settings, specs, the ledger of jobs, and what lies on storage.

Nothing in here imports flask, torch, fastai or the other three packages (`tests/test_architecture.py` checks it).
"""
