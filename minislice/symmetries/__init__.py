"""Every change of a transformer's weights that leaves what it computes unchanged.

To read: `kinds` (what there is), `places` (a symmetry and its places), `anatomy` (how that is found), `verification`.
"""
