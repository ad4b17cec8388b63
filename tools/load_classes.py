#!/usr/bin/env python3
"""A small job whose only purpose is that Java loads the classes which every job loads: `setup_env.archive_classes` runs it through spark-submit.

It ingests one CT slice (pydicom's own) into a lake in the folder that it is given, and reads it by SQL.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


def main() -> None:
    import pydicom

    from medspark.config import Config
    from medspark.keys import Ids
    from medspark.lake import ingest, session
    from medspark.lake.store import Lake
    from medspark.series.kind import series_kind

    folder = Path(sys.argv[1])
    slice_ = Path(pydicom.__file__).parent / "data" / "test_files" / "CT_small.dcm"
    spark = session.build("classes")
    lake = Lake(spark, str(folder / "lake"))
    run = ingest.Ingest(lake, series_kind(), Ids(None), Config(), ingest.Request((str(slice_),), dataset="classes"))
    summary = run.run()
    ingest.record_kpi(lake, summary)
    lake.frame("slices").createOrReplaceTempView("slices")
    spark.sql("SELECT modality, count(*) AS n FROM slices GROUP BY modality").collect()
    spark.stop()


if __name__ == "__main__":
    main()
