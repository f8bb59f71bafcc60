"""Recovery fine-tuning (section 4): a sliced network is trained for a little while."""
