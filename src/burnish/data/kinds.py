"""What the rows of a data set may be read as. Imports nothing, so that commands know it without reading a row."""

PREFERENCES, SUPERVISED, JUDGED = ROW_KINDS = ("preferences", "supervised", "judged")
