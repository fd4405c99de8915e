-- Deletes a root with its descendants. Results: 0 done, 1 no such instance, 2 a child, 3 still running (`culprit`).
-- A child that begins while the deletion waits for its parent's row goes with the tree. Left behind, it would have no root by
-- which it could be deleted.
CREATE OR REPLACE FUNCTION delete_tree(
    root text, forced bool,
    OUT result int2, OUT culprit text, OUT instances_deleted int8, OUT executions_deleted int8, OUT events_deleted int8,
    OUT messages_deleted int8
) LANGUAGE plpgsql AS $$
DECLARE
    members text[] := ARRAY[root];
    found text[];
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
    -- Only a member whose row is not locked yet can have another child.
    LOOP
        found := ARRAY(SELECT member FROM tree_of(root));
        EXIT WHEN found <@ members;
        members := found;
        PERFORM 1 FROM instances i WHERE i.id = ANY (members) ORDER BY i.id FOR UPDATE;
    END LOOP;
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
