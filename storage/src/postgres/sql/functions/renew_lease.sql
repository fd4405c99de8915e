-- `renew_node`, and what shows that the database went back to an older state: `was`, the end of the lease as it was stored, is never
-- before what an earlier renewal was told; the timeline changes when a backup is brought up to a moment or a standby takes over.
CREATE OR REPLACE FUNCTION renew_lease(
    node text, node_handlers text, lease_ms int8,
    OUT now int8, OUT node_ids text[], OUT node_handler_lists text[], OUT alive bool[], OUT owners text[], OUT epochs int8[],
    OUT was int8, OUT timeline text
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT n.lease_until INTO was FROM nodes n WHERE n.id = node;
    timeline := left(pg_walfile_name(pg_current_wal_lsn()), 8);
    SELECT r.now, r.node_ids, r.node_handler_lists, r.alive, r.owners, r.epochs
        INTO now, node_ids, node_handler_lists, alive, owners, epochs FROM renew_node(node, node_handlers, lease_ms) r;
END $$;
