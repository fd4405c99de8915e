-- Announces a node or renews its lease, and tells who holds what.
CREATE OR REPLACE FUNCTION renew_node(
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
