"""Measurements of the gossip layer, each beside a floor or a peer in the same run: `run.py` runs them all."""
