"""The ways to a server, a folder each behind the contract in `base`; importing none of them.

A channel brings its transport with it, so each is imported where it is chosen and not here.
"""
