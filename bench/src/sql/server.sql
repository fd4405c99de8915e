-- Version, and the process that serves this connection.
SELECT current_setting('server_version_num')::int, pg_backend_pid()
