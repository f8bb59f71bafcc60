"""What the paper doesn't do: neurons, repair, whole blocks, layers; what each costs, and a plan for a given size."""
