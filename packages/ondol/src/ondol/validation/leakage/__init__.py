"""Leakage: columns that give the target away, and held-out rows that resemble training rows."""
