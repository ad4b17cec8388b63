# Sourced by Spark's launchers; `make setup` copies it to pyspark/conf inside .venv, where @PYTHON@ becomes its interpreter.
# Everything given by the caller's environment wins.

# The `pyspark` shell, Horovod's tasks and Python workers use the environment's interpreter, not the first python3 on PATH.
PYSPARK_PYTHON="${PYSPARK_PYTHON:-@PYTHON@}"

# pyarrow 14's default allocator collapses on large blobs.
ARROW_DEFAULT_MEMORY_POOL="${ARROW_DEFAULT_MEMORY_POOL:-mimalloc}"

# Spark's web page has no setting for its address; it listens where SPARK_LOCAL_IP points: loopback in local mode,
# Spark's own choice as soon as another master is named.
if [ -z "${SPARK_LOCAL_IP:-}${HADOOP_CONF_DIR:-}${YARN_CONF_DIR:-}" ]; then
  case " $* " in
    *" --master local"* | *" --master=local"* | *" spark.master=local"*) SPARK_LOCAL_IP=127.0.0.1 ;;
    *" --master"* | *" spark.master="*) ;;
    *) SPARK_LOCAL_IP=127.0.0.1 ;;
  esac
fi

# Classes that Java maps into memory instead of reading them from 280 jars; made by `make setup`. Java leaves an archive alone that does not
# fit (another Java, other jars, another class path), and says nothing of it; its other warnings go to standard error. Spark's launcher is a small Java of its own.
if [ -r "@CLASSES@" ]; then
  case " ${SPARK_SUBMIT_OPTS:-} " in
    *"-XX:ArchiveClassesAtExit="* | *"-XX:SharedArchiveFile="*) ;;
    *) SPARK_SUBMIT_OPTS="\"-XX:SharedArchiveFile=@CLASSES@\" -Xshare:auto -Xlog:disable -Xlog:all=warning,cds*=off:stderr ${SPARK_SUBMIT_OPTS:-}" ;;
  esac
fi
SPARK_LAUNCHER_OPTS="${SPARK_LAUNCHER_OPTS:--XX:TieredStopAtLevel=1 -XX:+UseSerialGC -XX:-UsePerfData}"

# Ingest jobs ask little of Java: it commits what Python has written. Its first compiler alone is ready in 4 s of CPU less than both; SQL,
# compaction and all other programs keep both. Alone it would get 48 MB for what it has compiled, and stop for good when they are full, which
# a job that watches a folder for days would see; 240 MB is what both get.
case " $* " in
  *[/\ ]tile_slides* | *[/\ ]explode_series* | *[/\ ]ingest_photos* | *[/\ ]import_labels*)
    SPARK_SUBMIT_OPTS="-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m ${SPARK_SUBMIT_OPTS:-}"
    ;;
esac

# spark-sql: the databases of jobs/register_lake.py whose lake is there. Each process runs these statements when it starts (.hiverc), into a
# catalogue of its own, so that any number may run at once.
case " $* " in
  *SparkSQLCLIDriver*)
    medspark_sql="${XDG_CONFIG_HOME:-$HOME/.config}/medspark/sql"
    if [ -z "${HIVE_CONF_DIR:-}" ] && [ -d "$medspark_sql" ]; then
      HIVE_CONF_DIR="$medspark_sql"
      for medspark_file in "$medspark_sql"/*.sql; do
        [ -f "$medspark_file" ] || continue
        IFS= read -r medspark_lake < "$medspark_file"
        medspark_lake="${medspark_lake#-- medspark lake: }"
        case "$medspark_lake" in *://*) ;; *) [ -d "$medspark_lake" ] || continue ;; esac
        cat "$medspark_file"
      done > "$medspark_sql/.hiverc.$$" && mv -f "$medspark_sql/.hiverc.$$" "$medspark_sql/.hiverc"
    fi
    unset medspark_sql medspark_file medspark_lake ;;
esac
