"""Faults injected into real training jobs, and a long run under random delays: what happens, and how soon."""
