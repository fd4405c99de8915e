-- Makes instances, each with its first message; `made` tells which ids were free, `seqs` under which number the message of each
-- of those waits. No id is given twice.
CREATE OR REPLACE FUNCTION begin_instances(
    ids text[], home_shards int2[], orchestrations text[], parents text[], message_ids text[], datas bytea[],
    OUT now int8, OUT made text[], OUT seqs int8[]
) LANGUAGE plpgsql AS $$
DECLARE
    free text[];
BEGIN
    now := now_ms();
    WITH rows AS (
        INSERT INTO instances (execution, last_event_id, created, updated, shard, status, id, orchestration, version, parent)
        SELECT 1, 0, begin_instances.now, begin_instances.now, s.shard, 'Running', s.id, s.orchestration, '', s.parent
        FROM unnest(ids, home_shards, orchestrations, parents) AS s(id, shard, orchestration, parent)
        ON CONFLICT (id) DO NOTHING RETURNING id)
    SELECT coalesce(array_agg(id), '{}') INTO free FROM rows;
    -- Hardly ever is one taken; then the rows are compared.
    WITH rows AS (
        INSERT INTO inbox (shard, instance, message_id, data)
        SELECT s.shard, s.id, s.message_id, s.data
        FROM unnest(ids, home_shards, message_ids, datas) AS s(id, shard, message_id, data)
        WHERE cardinality(free) = cardinality(ids) OR s.id = ANY (free)
        RETURNING instance, seq)
    SELECT coalesce(array_agg(instance), '{}'), coalesce(array_agg(seq), '{}') INTO made, seqs FROM rows;
END $$;
