-- Forgets nodes that have been dead for long and hold nothing; returns them.
CREATE OR REPLACE FUNCTION forget_dead_nodes(dead_for_ms int8) RETURNS SETOF text LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM sessions WHERE worker IN (SELECT id FROM nodes WHERE lease_until < now_ms() - dead_for_ms);
    RETURN QUERY DELETE FROM nodes n WHERE n.lease_until < now_ms() - dead_for_ms
        AND NOT EXISTS (SELECT FROM shards s WHERE s.owner = n.id) RETURNING n.id;
END $$;
