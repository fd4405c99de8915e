-- An instance and its descendants, parents first.
CREATE OR REPLACE FUNCTION tree_of(root text) RETURNS TABLE (member text, level int4) LANGUAGE sql STABLE AS $$
    WITH RECURSIVE tree(id, depth) AS (
        SELECT i.id, 0 FROM instances i WHERE i.id = root
        UNION SELECT i.id, t.depth + 1 FROM instances i JOIN tree t ON i.parent = t.id)
    SELECT id, depth FROM tree ORDER BY depth, id
$$;
