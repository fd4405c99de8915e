-- Puts messages into inboxes.
-- Outcomes: 0 no such instance, 1 written, 2 ended or known, 3 the queue is full, 4 the row is held: try again.
-- Whoever puts a row beside an instance (a message, a heartbeat) holds the instance's row FOR KEY SHARE: that keeps neither turns nor
-- other senders out, but a deletion, which takes it FOR UPDATE, sees the new row or is seen. Nobody waits for such a lock while
-- it holds others: a row that is being deleted or begun anew is passed over (SKIP LOCKED), and the caller tries again.
CREATE OR REPLACE FUNCTION send_messages(
    receivers text[], message_ids text[], queues text[], datas bytea[], queue_max int4[],
    OUT now int8, OUT outcomes int2[], OUT shards int2[]
) LANGUAGE plpgsql AS $$
DECLARE
    locked text[];
    all_locked bool;
BEGIN
    now := now_ms();
    locked := ARRAY(SELECT i.id FROM instances i WHERE i.id = ANY (receivers) ORDER BY i.id FOR KEY SHARE SKIP LOCKED);
    all_locked := locked = ARRAY(SELECT i.id FROM instances i WHERE i.id = ANY (receivers) ORDER BY i.id);
    SELECT array_agg(j.outcome ORDER BY j.n), array_agg(j.shard ORDER BY j.n) INTO outcomes, shards FROM (
        SELECT m.n, i.shard, CASE
            WHEN i.id IS NULL THEN 0
            WHEN NOT all_locked AND i.id <> ALL (locked) THEN 4
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
