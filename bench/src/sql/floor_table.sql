CREATE TABLE IF NOT EXISTS events (step bigint, kind smallint, data text, PRIMARY KEY (step, kind))
