"""GroupMorph's Table 1, with alternative programs for comparison: cells, statistics, figures and a page."""
