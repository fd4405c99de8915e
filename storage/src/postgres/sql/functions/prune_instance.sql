-- Deletes histories of executions before the current one; null when there is no such instance.
CREATE OR REPLACE FUNCTION prune_instance(
    pruned text, keep_last int8, completed_before int8, OUT executions int8, OUT events int8
) LANGUAGE plpgsql AS $$
DECLARE
    latest int8;
    chosen int4[];
BEGIN
    SELECT i.execution INTO latest FROM instances i WHERE i.id = pruned;
    IF latest IS NULL THEN
        RETURN;
    END IF;
    executions := 0;
    events := 0;
    IF keep_last IS NULL AND completed_before IS NULL THEN
        RETURN;
    END IF;
    chosen := ARRAY(
        SELECT h.execution FROM history h WHERE h.instance = pruned AND h.execution < latest
            AND h.execution < coalesce(latest - greatest(keep_last, 1) + 1, latest)
        GROUP BY h.execution HAVING max(h.at) < coalesce(completed_before, 9223372036854775807));
    WITH gone AS (DELETE FROM history h WHERE h.instance = pruned AND h.execution = ANY (chosen) RETURNING 1)
        SELECT count(*) INTO events FROM gone;
    executions := cardinality(chosen);
END $$;
