"""Sections of a report, one file each.

A section's module defines `PLACE` (a number that orders sections), `NEEDS` (names of the dynamic analyses whose results
it reads) and `section(subject)`, which returns a `Section`, or None if the subject lacks the data for it.
"""
