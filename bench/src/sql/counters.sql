-- Postgres 15 to 17: what the database and the server have counted so far.
SELECT database.xact_commit AS commits,
       wal.wal_sync AS wal_syncs,
       (SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0)::bigint FROM pg_stat_user_tables) AS rows_written
FROM pg_stat_database AS database, pg_stat_wal AS wal
WHERE database.datname = current_database()
