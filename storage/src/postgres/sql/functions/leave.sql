-- A node that goes in order: its shards, sessions and lease are free at once.
CREATE OR REPLACE FUNCTION leave(node text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM nodes n WHERE n.id = node FOR UPDATE;
    UPDATE shards SET owner = NULL WHERE owner = node;
    DELETE FROM sessions WHERE worker = node;
    DELETE FROM nodes WHERE id = node;
END $$;
