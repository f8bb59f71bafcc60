"""Every change of a transformer's weights that leaves what it computes unchanged.

To read: `kinds` (what there is), `places` (where one acts), `anatomy` (how that is found), `verification`.
"""
