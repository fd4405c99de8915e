-- Whether a message waits in the inbox or was applied.
CREATE OR REPLACE FUNCTION is_known(to_instance text, with_message_id text) RETURNS bool LANGUAGE sql STABLE
    RETURN EXISTS (SELECT FROM inbox WHERE instance = to_instance AND message_id = with_message_id)
        OR EXISTS (SELECT FROM history WHERE instance = to_instance AND message_id = with_message_id);
