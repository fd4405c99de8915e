-- Clients of this database beside the one that asks: a backend reports its last counts when it ends.
SELECT count(*) FROM pg_stat_activity
WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
