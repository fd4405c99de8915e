-- Since Postgres 18 the syncs of the WAL are counted with all other I/O.
SELECT database.xact_commit AS commits,
       (SELECT coalesce(sum(fsyncs), 0)::bigint FROM pg_stat_io WHERE object = 'wal') AS wal_syncs,
       (SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables) AS rows_written
FROM pg_stat_database AS database
WHERE database.datname = current_database()
