"""What checks minislice's annotations while tests run (see `conftest.py`); a module, since the hook takes a name."""

from beartype import BeartypeConf, beartype

typechecked = beartype(conf=BeartypeConf(is_pep484_tower=True))  # an int may stand for a float, as PEP 484 has it
