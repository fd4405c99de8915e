-- Statements that belong to one durable step, as functions: one round trip, and no transaction that a client could leave open.

CREATE FUNCTION now_ms() RETURNS int8 LANGUAGE sql VOLATILE
    RETURN floor(extract(epoch FROM clock_timestamp()) * 1000)::int8;

-- Commits the turns of many instances. Outcomes, one per turn: 1 written, 2 fenced, 3 conflict. A failure of one turn that
-- shows only while it is written raises, and the caller commits the group again in halves.
CREATE FUNCTION commit_turns(
    -- Per turn: its fence, what the row must be, and what it becomes.
    t_instance text[], t_shard int2[], t_epoch int8[], t_execution int8[], t_event int8[], t_leftover bool[],
    s_orchestration text[], s_version text[], s_status text[], s_paused bool[], s_execution int8[], s_event int8[],
    s_bytes int8[], s_wake int8[], s_pending int4[], s_waits text[], s_stalled int4[], s_custom text[],
    s_custom_version int8[], s_output text[], s_completed int8[], s_shard int2[],
    -- Events.
    e_turn int4[], e_instance text[], e_epoch int4[], e_execution int4[], e_event int4[], e_terminal bool[], e_source int4[],
    e_message text[], e_at int8[], e_data bytea[],
    -- Inbox rows that were applied.
    c_turn int4[], c_instance text[], c_seq int8[],
    -- Key-value changes: 0 clears all, 1 clears a key, 2 sets; at most one per key.
    k_turn int4[], k_instance text[], k_op int2[], k_key text[], k_value text[], k_updated int8[],
    -- Messages: 0 to itself, 1 to a running instance, 2 starts one, otherwise `taken` goes back to the sender.
    m_turn int4[], m_kind int2[], m_from text[], m_from_shard int2[], m_to text[], m_to_shard int2[], m_id text[],
    m_queue text[], m_data bytea[], m_orchestration text[], m_parent text[], m_taken_id text[], m_taken_data bytea[],
    OUT now int8, OUT outcomes int2[], OUT wake_turn int4[], OUT wake_shard int2[], OUT wake_instance text[]
) LANGUAGE plpgsql AS $$
DECLARE
    locked text[];
    written int4[];
    made text[];
    gone int4;
    ended text[];
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
            updated = commit_turns.now
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
        DELETE FROM inbox x USING unnest(c_turn, c_instance, c_seq) AS c(turn, instance, seq)
            WHERE x.instance = c.instance AND x.seq = c.seq AND outcomes[c.turn] = 1;
        GET DIAGNOSTICS gone = ROW_COUNT;
        IF gone <> (SELECT count(*) FROM unnest(c_turn) AS c(turn) WHERE outcomes[c.turn] = 1) THEN
            RAISE EXCEPTION 'an inbox row was applied by somebody else' USING ERRCODE = 'OL001';
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
        WITH made_rows AS (
            INSERT INTO instances (execution, last_event_id, created, updated, shard, status, id, orchestration, version, parent)
            SELECT 1, 0, commit_turns.now, commit_turns.now, m.shard, 'Running', m.receiver, m.orchestration, '', m.parent
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

-- Makes instances, each with its first message; `made` tells which ids were free. No id is given twice.
CREATE FUNCTION start_instances(
    ids text[], home_shards int2[], orchestrations text[], parents text[], message_ids text[], datas bytea[],
    OUT now int8, OUT made text[]
) LANGUAGE plpgsql AS $$
BEGIN
    now := now_ms();
    WITH rows AS (
        INSERT INTO instances (execution, last_event_id, created, updated, shard, status, id, orchestration, version, parent)
        SELECT 1, 0, start_instances.now, start_instances.now, s.shard, 'Running', s.id, s.orchestration, '', s.parent
        FROM unnest(ids, home_shards, orchestrations, parents) AS s(id, shard, orchestration, parent)
        ON CONFLICT (id) DO NOTHING RETURNING id)
    SELECT coalesce(array_agg(id), '{}') INTO made FROM rows;
    -- Hardly ever is one taken; then the rows are compared.
    INSERT INTO inbox (shard, instance, message_id, data)
        SELECT s.shard, s.id, s.message_id, s.data
        FROM unnest(ids, home_shards, message_ids, datas) AS s(id, shard, message_id, data)
        WHERE cardinality(made) = cardinality(ids) OR s.id = ANY (made);
END $$;

-- Whether a message waits in the inbox or was applied.
CREATE FUNCTION is_known(to_instance text, with_message_id text) RETURNS bool LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM inbox WHERE instance = to_instance AND message_id = with_message_id)
        OR EXISTS (SELECT FROM history WHERE instance = to_instance AND message_id = with_message_id);

-- Puts messages into inboxes. Outcomes: 0 no such instance, 1 written, 2 ended or known, 3 the queue is full.
CREATE FUNCTION send_messages(
    receivers text[], message_ids text[], queues text[], datas bytea[], queue_max int4[],
    OUT now int8, OUT outcomes int2[], OUT shards int2[]
) LANGUAGE plpgsql AS $$
BEGIN
    now := now_ms();
    SELECT array_agg(j.outcome ORDER BY j.n), array_agg(j.shard ORDER BY j.n) INTO outcomes, shards FROM (
        SELECT m.n, i.shard, CASE
            WHEN i.id IS NULL THEN 0
            WHEN i.status <> 'Running' OR is_known(m.receiver, m.id) THEN 2
            WHEN m.queue IS NOT NULL AND (
                SELECT count(*) FROM inbox x WHERE x.instance = m.receiver AND x.queue = m.queue)
                + row_number() OVER (PARTITION BY m.receiver, m.queue ORDER BY m.n) > m.queue_max THEN 3
            ELSE 1 END::int2 AS outcome
        FROM unnest(receivers, message_ids, queues, queue_max) WITH ORDINALITY AS m(receiver, id, queue, queue_max, n)
        LEFT JOIN instances i ON i.id = m.receiver) j;
    INSERT INTO inbox (shard, instance, message_id, queue, data)
        SELECT send_messages.shards[m.n], m.receiver, m.id, m.queue, m.data
        FROM unnest(receivers, message_ids, queues, datas) WITH ORDINALITY AS m(receiver, id, queue, data, n)
        WHERE send_messages.outcomes[m.n] = 1 ORDER BY m.n
        ON CONFLICT (instance, message_id) DO NOTHING;
END $$;

-- An instance to start anew: a running one is told so, an ended one is made ready for its next execution.
CREATE FUNCTION replace_instance(
    instance_id text, new_orchestration text, new_message_id text, start_data bytea, replace_data bytea, OUT home int2
) LANGUAGE plpgsql AS $$
DECLARE
    running bool;
BEGIN
    SELECT i.shard, i.status = 'Running' INTO home, running FROM instances i WHERE i.id = instance_id FOR UPDATE;
    IF home IS NULL OR is_known(instance_id, new_message_id) THEN
        RETURN;
    END IF;
    IF NOT running THEN
        UPDATE instances SET status = 'Running', completed = NULL, output = NULL, execution = execution + 1,
            last_event_id = 0, history_bytes = 0, stalled = 0, wake_at = NULL, pending = 0, paused = false, waits = '',
            orchestration = new_orchestration, version = '', custom_status = NULL,
            custom_status_version = custom_status_version + 1, parent = NULL WHERE id = instance_id;
        DELETE FROM kv WHERE instance = instance_id;
    END IF;
    INSERT INTO inbox (shard, instance, message_id, replaces, data)
        VALUES (home, instance_id, new_message_id, running, CASE WHEN running THEN replace_data ELSE start_data END)
        ON CONFLICT (instance, message_id) DO NOTHING;
END $$;

-- Announces a node or renews its lease, and tells who holds what.
CREATE FUNCTION renew_node(
    node text, node_handlers text, lease_ms int8,
    OUT now int8, OUT node_ids text[], OUT node_handler_lists text[], OUT alive bool[], OUT owners text[], OUT epochs int8[]
) LANGUAGE plpgsql AS $$
BEGIN
    now := now_ms();
    INSERT INTO nodes (id, handlers, lease_until) VALUES (node, node_handlers, renew_node.now + lease_ms)
        ON CONFLICT (id) DO UPDATE SET lease_until = excluded.lease_until, handlers = excluded.handlers;
    SELECT array_agg(n.id ORDER BY n.id), array_agg(n.handlers ORDER BY n.id),
           array_agg(n.lease_until >= renew_node.now ORDER BY n.id)
        INTO node_ids, node_handler_lists, alive FROM nodes n;
    SELECT array_agg(s.owner ORDER BY s.id), array_agg(s.epoch ORDER BY s.id) INTO owners, epochs FROM shards s;
END $$;

-- Takes shards that are free; those of nodes whose lease has ended too, when `steal`.
CREATE FUNCTION acquire_shards(node text, wanted int2[], steal bool)
RETURNS TABLE (shard int2, new_epoch int8) LANGUAGE plpgsql AS $$
BEGIN
    -- Waits for commits of the former owners, and keeps them from beginning new ones.
    PERFORM 1 FROM nodes n WHERE n.lease_until < now_ms()
        AND n.id IN (SELECT s.owner FROM shards s WHERE s.id = ANY (wanted)) ORDER BY n.id FOR UPDATE;
    RETURN QUERY UPDATE shards s SET owner = node, epoch = s.epoch + 1
        WHERE s.id IN (SELECT x.id FROM shards x WHERE x.id = ANY (wanted) ORDER BY x.id FOR UPDATE)
          AND (s.owner IS NULL OR steal AND NOT EXISTS (
               SELECT FROM nodes n WHERE n.id = s.owner AND n.lease_until >= now_ms()))
        RETURNING s.id, s.epoch;
END $$;

CREATE FUNCTION release_shards(node text, given int2[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM nodes n WHERE n.id = node FOR UPDATE;
    UPDATE shards SET owner = NULL WHERE id = ANY (given) AND owner = node;
END $$;

CREATE FUNCTION leave(node text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM nodes n WHERE n.id = node FOR UPDATE;
    UPDATE shards SET owner = NULL WHERE owner = node;
    DELETE FROM sessions WHERE worker = node;
    DELETE FROM nodes WHERE id = node;
END $$;

-- Forgets nodes that have been dead for long and hold nothing; returns them.
CREATE FUNCTION forget_dead_nodes(dead_for_ms int8) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM sessions WHERE worker IN (SELECT id FROM nodes WHERE lease_until < now_ms() - dead_for_ms);
    RETURN QUERY DELETE FROM nodes n WHERE n.lease_until < now_ms() - dead_for_ms
        AND NOT EXISTS (SELECT FROM shards s WHERE s.owner = n.id) RETURNING n.id;
END $$;

-- What a node reports takes the place of what it reported before.
CREATE FUNCTION report_shortages(
    reporter text, reasons text[], instances text[], orchestrations text[], counts int4[], times int8[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM shortages WHERE node = reporter;
    INSERT INTO shortages (node, reason, instance, orchestration, waiting, since)
        SELECT reporter, s.* FROM unnest(reasons, instances, orchestrations, counts, times) AS s;
END $$;

-- Takes a session unless a live worker used it less than `idle_ms` ago; returns who has it.
CREATE FUNCTION claim_session(wanted text, claimant text, idle_ms int8) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    holder text;
BEGIN
    INSERT INTO sessions AS s (session, worker, used_at) VALUES (wanted, claimant, now_ms())
        ON CONFLICT (session) DO UPDATE SET worker = excluded.worker, used_at = excluded.used_at
        WHERE s.worker = excluded.worker OR s.used_at < excluded.used_at - idle_ms
           OR NOT EXISTS (SELECT FROM nodes n WHERE n.id = s.worker AND n.lease_until >= excluded.used_at)
        RETURNING worker INTO holder;
    IF holder IS NULL THEN
        SELECT s.worker INTO holder FROM sessions s WHERE s.session = wanted;
    END IF;
    RETURN coalesce(holder, claimant);
END $$;

-- An instance and its descendants, parents first.
CREATE FUNCTION tree_of(root text) RETURNS TABLE (member text, level int4) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE tree(id, depth) AS (
        SELECT i.id, 0 FROM instances i WHERE i.id = root
        UNION SELECT i.id, t.depth + 1 FROM instances i JOIN tree t ON i.parent = t.id)
    SELECT id, depth FROM tree ORDER BY depth, id
$$;

-- Deletes a root with its descendants. Results: 0 done, 1 no such instance, 2 a child, 3 still running (`culprit`).
CREATE FUNCTION delete_tree(
    root text, forced bool,
    OUT result int2, OUT culprit text, OUT instances_deleted int8, OUT executions_deleted int8, OUT events_deleted int8,
    OUT messages_deleted int8
) LANGUAGE plpgsql AS $$
DECLARE
    members text[];
    is_child bool;
BEGIN
    SELECT i.parent IS NOT NULL INTO is_child FROM instances i WHERE i.id = root FOR UPDATE;
    IF is_child IS NULL THEN
        result := 1;
        RETURN;
    ELSIF is_child THEN
        result := 2;
        RETURN;
    END IF;
    members := ARRAY(SELECT member FROM tree_of(root));
    PERFORM 1 FROM instances i WHERE i.id = ANY (members) ORDER BY i.id FOR UPDATE;
    SELECT i.id INTO culprit FROM instances i WHERE i.id = ANY (members) AND i.status = 'Running' LIMIT 1;
    IF culprit IS NOT NULL AND NOT forced THEN
        result := 3;
        RETURN;
    END IF;
    result := 0;
    SELECT count(*) INTO executions_deleted FROM history h WHERE h.instance = ANY (members) AND h.event_id = 1;
    WITH gone AS (DELETE FROM history h WHERE h.instance = ANY (members) RETURNING 1)
        SELECT count(*) INTO events_deleted FROM gone;
    WITH gone AS (DELETE FROM inbox x WHERE x.instance = ANY (members) RETURNING 1)
        SELECT count(*) INTO messages_deleted FROM gone;
    DELETE FROM kv WHERE kv.instance = ANY (members);
    DELETE FROM heartbeats b WHERE b.instance = ANY (members);
    WITH gone AS (DELETE FROM instances i WHERE i.id = ANY (members) RETURNING 1)
        SELECT count(*) INTO instances_deleted FROM gone;
END $$;

-- Deletes histories of executions before the current one; null when there is no such instance.
CREATE FUNCTION prune_instance(
    pruned text, keep_last int8, completed_before int8, OUT executions int8, OUT events int8
) LANGUAGE plpgsql AS $$
DECLARE
    latest int8;
    chosen int4[];
BEGIN
    SELECT i.execution INTO latest FROM instances i WHERE i.id = pruned;
    IF latest IS NULL THEN
        RETURN;
    END IF;
    executions := 0;
    events := 0;
    IF keep_last IS NULL AND completed_before IS NULL THEN
        RETURN;
    END IF;
    chosen := ARRAY(
        SELECT h.execution FROM history h WHERE h.instance = pruned AND h.execution < latest
            AND h.execution < coalesce(latest - greatest(keep_last, 1) + 1, latest)
        GROUP BY h.execution HAVING max(h.at) < coalesce(completed_before, 9223372036854775807));
    WITH gone AS (DELETE FROM history h WHERE h.instance = pruned AND h.execution = ANY (chosen) RETURNING 1)
        SELECT count(*) INTO events FROM gone;
    executions := cardinality(chosen);
END $$;
