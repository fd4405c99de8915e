-- Keeps what an activity said, unless it has its outcome, or this instance is another life under the id: the scheduling
-- event of this moment is the activity's own. The advisory lock is shared with the turns that take heartbeats away.
CREATE OR REPLACE FUNCTION save_heartbeat(
    of_instance text, of_execution int8, of_event int4, scheduled_at int8, of_activity text, said text
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    PERFORM pg_advisory_xact_lock_shared(hashtext(current_schema() || '.heartbeats'), hashtext(of_instance) & 255);
    INSERT INTO heartbeats (instance, activity, details)
        SELECT i.id, of_activity, said FROM instances i
        WHERE i.id = of_instance AND i.completed IS NULL AND i.execution = of_execution
          AND EXISTS (SELECT FROM history h WHERE h.instance = of_instance AND h.execution = of_execution::int4
                      AND h.event_id = of_event AND h.at = scheduled_at)
          AND NOT EXISTS (SELECT FROM history h WHERE h.instance = of_instance AND h.execution = of_execution::int4
                          AND h.source_event_id = of_event)
        FOR KEY SHARE OF i SKIP LOCKED
        ON CONFLICT (instance, activity) DO UPDATE SET details = excluded.details;
END $$;
