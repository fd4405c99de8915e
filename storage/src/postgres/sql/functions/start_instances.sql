-- Makes instances, each with its first message; `made` tells which ids were free. No id is given twice.
CREATE OR REPLACE FUNCTION start_instances(
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
