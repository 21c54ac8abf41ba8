"""Judge predictions against manual labels, in mm, mL and %, and show them on one page."""
