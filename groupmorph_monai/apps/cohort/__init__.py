"""`groupmorph cohort` and `groupmorph evaluate`: process every series of a study, on one machine or on many."""
