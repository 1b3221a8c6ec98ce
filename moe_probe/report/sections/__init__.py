"""Sections of a report, one file each.

A section's module holds `PLACE` (sections stand in the order of this number), `NEEDS` (names of the dynamic analyses
whose results it reads) and `section(subject)`, which returns a `Section`, or None where the subject lacks what it is
about.
"""
