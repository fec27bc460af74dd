"""`groupmorph cohort`: register every series of a study, on one machine or on many machines."""
