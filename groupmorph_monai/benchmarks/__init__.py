"""Methods, models and peers for `groupmorph benchmark`, and series with known motion."""
