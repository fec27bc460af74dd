"""What `groupmorph benchmark` asks: methods, models and peers on series whose truth is known."""
