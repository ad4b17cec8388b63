"""De-identification before the first write: a table's history keeps old bytes, so cleaning later cleans nothing.

Reading order: ``table.py`` (PS3.15 Table E.1-1 as data), ``profile.py`` (what is done to each attribute, the table's options and the rules
beyond it), ``dates.py`` and ``text.py`` (how dates, ages and descriptors are carried over), ``values.py`` (an element's values), ``echo.py`` (the guard against
names in kept texts), ``header_json.py`` (the walk over a data set), ``properties.py`` (slide properties and NIfTI headers), ``key.py`` (the lake's key).

What this package refuses to do: it keeps nothing that is not known to be safe; it repairs no malformed value; it never writes a value into a
log or an error; it does not look into pixels (burned-in text is the kinds' business, verdict BURNED_IN).
"""

from medspark.deid.dates import age_years, shift_date
from medspark.deid.echo import echoes
from medspark.deid.header_json import actions, header_json
from medspark.deid.key import load_key
from medspark.deid.properties import keep_slide_properties, nifti_header_json
from medspark.deid.text import clean_text, technical_text

__all__ = [
    "actions",
    "age_years",
    "clean_text",
    "echoes",
    "header_json",
    "keep_slide_properties",
    "load_key",
    "nifti_header_json",
    "shift_date",
    "technical_text",
]
