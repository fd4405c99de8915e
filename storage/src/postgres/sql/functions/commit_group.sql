-- Commits the turns of many instances. Outcomes, one per turn: 1 written, 2 fenced, 3 conflict. A failure of one turn that
-- shows only while it is written raises, and the caller commits the group again in halves.
-- With the outcome of an activity its heartbeats go. A message that came by the broker is compared with its row, which a store that
-- was set back may not have. Messages for an instance that is being deleted are told, and tried again.
CREATE OR REPLACE FUNCTION commit_group(
    t_instance text[], t_shard int2[], t_epoch int8[], t_execution int8[], t_event int8[], t_leftover bool[],
    s_orchestration text[], s_version text[], s_status text[], s_paused bool[], s_execution int8[], s_event int8[],
    s_bytes int8[], s_wake int8[], s_pending int4[], s_waits text[], s_stalled int4[], s_custom text[],
    s_custom_version int8[], s_output text[], s_completed int8[], s_shard int2[],
    e_turn int4[], e_instance text[], e_epoch int4[], e_execution int4[], e_event int4[], e_terminal bool[], e_source int4[],
    e_message text[], e_at int8[], e_data bytea[],
    -- The SHA-256 that a consumed row's data must have, where the message did not come from the row.
    c_turn int4[], c_instance text[], c_seq int8[], c_digest bytea[],
    k_turn int4[], k_instance text[], k_op int2[], k_key text[], k_value text[], k_updated int8[],
    m_turn int4[], m_kind int2[], m_from text[], m_from_shard int2[], m_to text[], m_to_shard int2[], m_id text[],
    m_queue text[], m_data bytea[], m_orchestration text[], m_parent text[], m_taken_id text[], m_taken_data bytea[],
    -- Heartbeats that go: of one activity, or of all of the instance.
    h_turn int4[], h_instance text[], h_activity text[],
    OUT now int8, OUT outcomes int2[], OUT wake_turn int4[], OUT wake_shard int2[], OUT wake_instance text[]
) LANGUAGE plpgsql AS $$
DECLARE
    locked text[];
    written int4[];
    made text[];
    gone int4;
    ended text[];
    receivers text[];
BEGIN
    now := now_ms();
    -- A successor takes the node's row FOR UPDATE before it raises an epoch, so what is read below holds until the commit.
    locked := ARRAY(SELECT n.id FROM nodes n WHERE n.id IN (SELECT s.owner FROM shards s WHERE s.id = ANY (t_shard))
                    ORDER BY n.id FOR KEY SHARE);
    outcomes := ARRAY(
        SELECT CASE WHEN s.epoch = t.epoch AND s.owner = ANY (locked) THEN 1 ELSE 2 END::int2
        FROM unnest(t_shard, t_epoch) WITH ORDINALITY AS t(shard, epoch, n) LEFT JOIN shards s ON s.id = t.shard ORDER BY t.n);

    WITH changed AS (
        UPDATE instances i SET
            orchestration = t.orchestration, version = t.version, status = t.status, paused = t.paused,
            execution = t.execution, last_event_id = t.event, history_bytes = t.bytes, wake_at = t.wake,
            pending = t.pending, waits = t.waits, stalled = t.stalled, custom_status = t.custom,
            custom_status_version = t.custom_version, output = t.output, completed = t.completed, shard = t.shard,
            updated = commit_group.now
        FROM unnest(t_instance, t_execution, t_event, s_orchestration, s_version, s_status, s_paused, s_execution, s_event,
                    s_bytes, s_wake, s_pending, s_waits, s_stalled, s_custom, s_custom_version, s_output, s_completed, s_shard)
             WITH ORDINALITY AS t(instance, was_execution, was_event, orchestration, version, status, paused, execution, event,
                    bytes, wake, pending, waits, stalled, custom, custom_version, output, completed, shard, n)
        -- Not `status`: it is indexed, and the plan must go by the id alone, however many instances run.
        WHERE i.id = t.instance AND i.execution = t.was_execution AND i.last_event_id = t.was_event
          AND i.completed IS NULL AND outcomes[t.n] = 1
        RETURNING t.n::int4 AS n)
    SELECT coalesce(array_agg(n), '{}') INTO written FROM changed;
    IF cardinality(written) < cardinality(t_instance) THEN
        -- An ended instance has one more kind of turn: clearing what still came in.
        outcomes := ARRAY(
            SELECT CASE WHEN o.outcome <> 1 OR t.n = ANY (written) THEN o.outcome
                        WHEN t.leftover AND EXISTS (
                            SELECT FROM instances i WHERE i.id = t.instance AND i.execution = t.execution
                            AND i.last_event_id = t.event AND i.status <> 'Running') THEN 1
                        ELSE 3 END::int2
            FROM unnest(t_instance, t_execution, t_event, t_leftover) WITH ORDINALITY AS t(instance, execution, event, leftover, n)
            JOIN unnest(outcomes) WITH ORDINALITY AS o(outcome, n) ON o.n = t.n ORDER BY t.n);
    END IF;

    INSERT INTO history (execution, epoch, at, event_id, source_event_id, terminal, instance, message_id, data)
        SELECT e.execution, e.epoch, e.at, e.event, e.source, e.terminal, e.instance, e.message, e.data
        FROM unnest(e_turn, e_instance, e_epoch, e_execution, e_event, e_terminal, e_source, e_message, e_at, e_data)
             AS e(turn, instance, epoch, execution, event, terminal, source, message, at, data)
        WHERE outcomes[e.turn] = 1;

    IF cardinality(c_turn) > 0 THEN
        DELETE FROM inbox x USING unnest(c_turn, c_instance, c_seq, c_digest) AS c(turn, instance, seq, digest)
            WHERE x.instance = c.instance AND x.seq = c.seq AND outcomes[c.turn] = 1
              AND (c.digest IS NULL OR sha256(x.data) = c.digest);
        GET DIAGNOSTICS gone = ROW_COUNT;
        IF gone <> (SELECT count(*) FROM unnest(c_turn) AS c(turn) WHERE outcomes[c.turn] = 1) THEN
            RAISE EXCEPTION 'an inbox row was applied by somebody else, or is another message' USING ERRCODE = 'OL001';
        END IF;
    END IF;

    IF cardinality(k_turn) > 0 THEN
        DELETE FROM kv USING unnest(k_turn, k_instance, k_op, k_key) AS k(turn, instance, op, key)
            WHERE kv.instance = k.instance AND (k.op = 0 OR k.op = 1 AND kv.key = k.key) AND outcomes[k.turn] = 1;
        INSERT INTO kv (updated, instance, key, value)
            SELECT k.updated, k.instance, k.key, k.value
            FROM unnest(k_turn, k_instance, k_op, k_key, k_value, k_updated) AS k(turn, instance, op, key, value, updated)
            WHERE k.op = 2 AND outcomes[k.turn] = 1
            ON CONFLICT (instance, key) DO UPDATE SET value = excluded.value, updated = excluded.updated;
    END IF;

    IF cardinality(h_turn) > 0 THEN
        -- A heartbeat that is being written lands before this or finds the outcome. In order, so that no two turns wait for each other.
        PERFORM pg_advisory_xact_lock(hashtext(current_schema() || '.heartbeats'), l.bucket)
            FROM (SELECT DISTINCT hashtext(h) & 255 AS bucket FROM unnest(h_instance) AS h ORDER BY 1) l;
        DELETE FROM heartbeats b USING unnest(h_turn, h_instance, h_activity) AS h(turn, instance, activity)
            WHERE b.instance = h.instance AND (h.activity IS NULL OR b.activity = h.activity) AND outcomes[h.turn] = 1;
    END IF;

    -- Rows follow an instance to its new shard, and go with its end.
    IF s_shard <> t_shard THEN
        UPDATE inbox x SET shard = t.shard
            FROM unnest(t_instance, t_shard, s_shard) WITH ORDINALITY AS t(instance, was, shard, n)
            WHERE x.instance = t.instance AND t.was <> t.shard AND outcomes[t.n] = 1;
    END IF;
    ended := ARRAY(SELECT t.instance FROM unnest(t_instance, s_completed) WITH ORDINALITY AS t(instance, completed, n)
                   WHERE t.completed IS NOT NULL AND outcomes[t.n] = 1);
    IF cardinality(ended) > 0 THEN
        -- A new start that a turn has not seen must not go with the rest.
        IF EXISTS (SELECT FROM inbox x WHERE x.instance = ANY (ended) AND x.replaces) THEN
            RAISE EXCEPTION 'a new start has come in' USING ERRCODE = 'OL001';
        END IF;
        DELETE FROM inbox x WHERE x.instance = ANY (ended);
        DELETE FROM heartbeats h WHERE h.instance = ANY (ended);
    END IF;

    IF cardinality(m_turn) > 0 THEN
        receivers := ARRAY(SELECT DISTINCT m.receiver FROM unnest(m_turn, m_kind, m_to) AS m(turn, kind, receiver)
                           WHERE m.kind = 1 AND outcomes[m.turn] = 1);
        IF cardinality(receivers) > 0 THEN
            locked := ARRAY(SELECT i.id FROM instances i WHERE i.id = ANY (receivers) ORDER BY i.id FOR KEY SHARE SKIP LOCKED);
            IF locked <> ARRAY(SELECT i.id FROM instances i WHERE i.id = ANY (receivers) ORDER BY i.id) THEN
                RAISE EXCEPTION 'a receiver is being deleted or begun anew' USING ERRCODE = 'OL001';
            END IF;
        END IF;
        WITH made_rows AS (
            INSERT INTO instances (execution, last_event_id, created, updated, shard, status, id, orchestration, version, parent)
            SELECT 1, 0, commit_group.now, commit_group.now, m.shard, 'Running', m.receiver, m.orchestration, '', m.parent
            FROM unnest(m_turn, m_kind, m_to, m_to_shard, m_orchestration, m_parent)
                 WITH ORDINALITY AS m(turn, kind, receiver, shard, orchestration, parent, n)
            WHERE m.kind = 2 AND outcomes[m.turn] = 1 ORDER BY m.n
            ON CONFLICT (id) DO NOTHING RETURNING id)
        SELECT coalesce(array_agg(id), '{}') INTO made FROM made_rows;
        WITH asked AS (
            SELECT m.*, m.kind = 2 AND m.receiver = ANY (made)
                        AND m.n = min(m.n) FILTER (WHERE m.kind = 2) OVER (PARTITION BY m.receiver) AS makes
            FROM unnest(m_turn, m_kind, m_from, m_from_shard, m_to, m_id, m_queue, m_data, m_taken_id, m_taken_data)
                 WITH ORDINALITY AS m(turn, kind, sender, sender_shard, receiver, id, queue, data, taken_id, taken_data, n)
            WHERE outcomes[m.turn] = 1),
        addressed AS (
            -- To a running instance, to itself, or the first message of a new one.
            SELECT a.turn, a.kind, i.shard, i.id AS receiver, a.id, a.queue, a.data, a.n
            FROM asked a JOIN instances i ON i.id = a.receiver
            WHERE i.completed IS NULL AND (a.kind < 2 OR a.makes)
            UNION ALL
            SELECT a.turn, a.kind, a.sender_shard, a.sender, a.taken_id, NULL, a.taken_data, a.n
            FROM asked a WHERE a.kind = 2 AND NOT a.makes AND a.taken_id IS NOT NULL),
        sent AS (
            INSERT INTO inbox (shard, instance, message_id, queue, data)
            SELECT a.shard, a.receiver, a.id, a.queue, a.data FROM addressed a ORDER BY a.n
            ON CONFLICT (instance, message_id) DO NOTHING)
        SELECT array_agg(a.turn), array_agg(a.shard), array_agg(a.receiver)
            INTO wake_turn, wake_shard, wake_instance FROM addressed a WHERE a.kind > 0;
    END IF;
END $$;
