-- Takes shards that are free; those of nodes whose lease has ended too, when `steal`.
CREATE OR REPLACE FUNCTION acquire_shards(node text, wanted int2[], steal bool)
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
