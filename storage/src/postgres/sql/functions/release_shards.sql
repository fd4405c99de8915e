-- Gives shards back, so that others need not wait until the lease has ended.
CREATE OR REPLACE FUNCTION release_shards(node text, given int2[]) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM 1 FROM nodes n WHERE n.id = node FOR UPDATE;
    UPDATE shards SET owner = NULL WHERE id = ANY (given) AND owner = node;
END $$;
