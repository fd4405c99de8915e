-- Tables and their constraints; the guarantees that a database can hold are held here.

CREATE TABLE nodes (
    id text PRIMARY KEY,
    handlers text NOT NULL,
    lease_until int8 NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE shortages (
    node text NOT NULL REFERENCES nodes ON DELETE CASCADE,
    reason text NOT NULL,
    instance text NOT NULL,
    orchestration text NOT NULL,
    waiting int4 NOT NULL,
    since int8 NOT NULL,
    PRIMARY KEY (node, reason)
);

CREATE TABLE shards (
    id int2 PRIMARY KEY,
    owner text,
    epoch int8 NOT NULL DEFAULT 0 CHECK (epoch >= 0)
) WITH (fillfactor = 50);

CREATE TABLE sessions (
    session text PRIMARY KEY,
    worker text NOT NULL,
    used_at int8 NOT NULL
) WITH (fillfactor = 70);
CREATE INDEX sessions_worker ON sessions (worker);

CREATE TABLE instances (
    execution int8 NOT NULL CHECK (execution >= 1),
    last_event_id int8 NOT NULL CHECK (last_event_id >= 0),
    history_bytes int8 NOT NULL DEFAULT 0,
    wake_at int8,
    custom_status_version int8 NOT NULL DEFAULT 0,
    created int8 NOT NULL,
    updated int8 NOT NULL,
    completed int8,
    pending int4 NOT NULL DEFAULT 0,
    stalled int4 NOT NULL DEFAULT 0,
    shard int2 NOT NULL,
    paused bool NOT NULL DEFAULT false,
    status text NOT NULL CHECK (status IN ('Running', 'Completed', 'Failed')),
    id text PRIMARY KEY,
    orchestration text NOT NULL,
    version text NOT NULL,
    waits text NOT NULL DEFAULT '',
    parent text,
    custom_status text,
    output text,
    CHECK ((status = 'Running') = (completed IS NULL))
) WITH (fillfactor = 60);
-- What changes in every turn is in no index, so that its updates stay in their page.
CREATE INDEX instances_due ON instances (wake_at) WHERE wake_at IS NOT NULL AND status = 'Running';
CREATE INDEX instances_pending ON instances (shard, id) WHERE pending > 0;
CREATE INDEX instances_stalled ON instances (id) WHERE stalled > 0;
CREATE INDEX instances_parent ON instances (parent) WHERE parent IS NOT NULL;
CREATE INDEX instances_status ON instances (status, created);

-- Two rows of this for each step: numbers are as small as limits allow.
CREATE TABLE history (
    at int8 NOT NULL,
    execution int4 NOT NULL,
    epoch int4 NOT NULL,
    event_id int4 NOT NULL CHECK (event_id >= 1),
    source_event_id int4 CHECK (source_event_id < event_id),
    terminal bool NOT NULL DEFAULT false,
    instance text NOT NULL,
    message_id text,
    data bytea NOT NULL,
    PRIMARY KEY (instance, execution, event_id)
);
CREATE UNIQUE INDEX history_outcome ON history (instance, execution, source_event_id) WHERE source_event_id IS NOT NULL;
CREATE UNIQUE INDEX history_message ON history (instance, message_id) WHERE message_id IS NOT NULL;
CREATE UNIQUE INDEX history_terminal ON history (instance, execution) WHERE terminal;

CREATE FUNCTION history_is_append_only() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION 'history is append-only';
END $$;
CREATE TRIGGER history_is_append_only BEFORE UPDATE ON history
    FOR EACH ROW EXECUTE FUNCTION history_is_append_only();

CREATE TABLE inbox (
    seq int8 GENERATED ALWAYS AS IDENTITY,
    -- Sequence numbers do not become visible in order; whoever reads on goes by the writing transaction.
    written_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
    shard int2 NOT NULL,
    instance text NOT NULL,
    message_id text NOT NULL,
    queue text,
    -- A new start that ends what runs.
    replaces bool NOT NULL DEFAULT false,
    data bytea NOT NULL,
    PRIMARY KEY (instance, seq),
    UNIQUE (instance, message_id)
);
CREATE INDEX inbox_arrivals ON inbox (shard, written_by, seq);

CREATE TABLE heartbeats (
    instance text NOT NULL,
    activity text NOT NULL,
    details text NOT NULL,
    PRIMARY KEY (instance, activity)
);

CREATE TABLE kv (
    updated int8 NOT NULL,
    instance text NOT NULL,
    key text NOT NULL,
    value text NOT NULL,
    PRIMARY KEY (instance, key)
);
