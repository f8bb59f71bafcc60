def plan():
    """What to delete from mini-llama: options of `minislice.SlicingOptions`, as a dictionary."""
    width = 8 * [144] + [192]
    neurons = [440, 424, 448, 456]
    options = {"adapter": "none", "repair": True}
    return {"width": width, "neurons": neurons, "drop": [], **options}
