"""GroupMorph's Table 1, beside the programs that people would use instead: cells, statistics, figures and a page."""
