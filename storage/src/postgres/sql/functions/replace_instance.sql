-- An instance to start anew: a running one is told so, an ended one is made ready for its next execution.
-- An ended instance may have rows that were sent while its last turn was written: they were for the life that is over.
CREATE OR REPLACE FUNCTION replace_instance(
    instance_id text, new_orchestration text, new_message_id text, start_data bytea, replace_data bytea, OUT home int2
) LANGUAGE plpgsql AS $$
DECLARE
    running bool;
BEGIN
    SELECT i.shard, i.status = 'Running' INTO home, running FROM instances i WHERE i.id = instance_id FOR UPDATE;
    IF home IS NULL OR is_known(instance_id, new_message_id) THEN
        RETURN;
    END IF;
    IF NOT running THEN
        UPDATE instances SET status = 'Running', completed = NULL, output = NULL, execution = execution + 1,
            last_event_id = 0, history_bytes = 0, stalled = 0, wake_at = NULL, pending = 0, paused = false, waits = '',
            orchestration = new_orchestration, version = '', custom_status = NULL,
            custom_status_version = custom_status_version + 1, parent = NULL WHERE id = instance_id;
        DELETE FROM kv WHERE instance = instance_id;
        DELETE FROM inbox WHERE instance = instance_id;
        DELETE FROM heartbeats WHERE instance = instance_id;
    END IF;
    INSERT INTO inbox (shard, instance, message_id, replaces, data)
        VALUES (home, instance_id, new_message_id, running, CASE WHEN running THEN replace_data ELSE start_data END)
        ON CONFLICT (instance, message_id) DO NOTHING;
END $$;
