"""Series: CT, MR, X-ray, ultrasound, PET and NIfTI volumes, from headers to rows of ``series``, ``slices`` and ``pixels``.

Why it exists: a folder of DICOM files says neither which of them form a volume, nor in which order, nor what their numbers mean. This
package answers the three from the headers alone, and writes down as verdicts whatever does not fit; it never repairs silently.

Reading order: ``header.py`` (one file -> a small dictionary, and the view on raw elements that everything else uses), ``geometry.py`` (where
a slice lies), ``rescale.py`` (what a stored value means), ``frames.py`` (one row per frame), ``attributes.py`` (what a slice says about its series), ``plan.py`` (headers -> units of work),
``explode.py`` (one unit -> rows), ``assemble.py`` (rows of slices -> series with verdicts), ``kind.py`` (the four as one object).
``files.py``, ``elements.py``, ``decode.py`` and ``nifti.py`` open files and read pixels.

It refuses to interpolate, to reorder by file name or InstanceNumber, to guess a missing spacing, and to know Spark.
"""
