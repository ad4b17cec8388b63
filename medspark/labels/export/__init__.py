"""Labels back out: rows of ``labels`` to the files that other programs read, one module per format.

Read ``rows.py`` (what a writer is given), then ``seg.py``, ``coco.py``, ``nifti.py``, ``png.py``, ``geojson.py``; ``stitch.py`` puts the tiles of
a grid together again, ``trace.py`` turns a mask into outlines that rasterise to the same mask. Writers are pure: rows in, bytes or a
document out; what a format cannot say raises `Rejected` with the reason. Refuses to resample, to smooth an outline, to squeeze
uneven slices into one step, and to let one label hide another.
"""
