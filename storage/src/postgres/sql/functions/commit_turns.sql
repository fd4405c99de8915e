-- `commit_group` as nodes of version 3 and before call it.
CREATE OR REPLACE FUNCTION commit_turns(
    -- Per turn: its fence, what the row must be, and what it becomes.
    t_instance text[], t_shard int2[], t_epoch int8[], t_execution int8[], t_event int8[], t_leftover bool[],
    s_orchestration text[], s_version text[], s_status text[], s_paused bool[], s_execution int8[], s_event int8[],
    s_bytes int8[], s_wake int8[], s_pending int4[], s_waits text[], s_stalled int4[], s_custom text[],
    s_custom_version int8[], s_output text[], s_completed int8[], s_shard int2[],
    -- Events.
    e_turn int4[], e_instance text[], e_epoch int4[], e_execution int4[], e_event int4[], e_terminal bool[], e_source int4[],
    e_message text[], e_at int8[], e_data bytea[],
    -- Inbox rows that were applied.
    c_turn int4[], c_instance text[], c_seq int8[],
    -- Key-value changes: 0 clears all, 1 clears a key, 2 sets; at most one per key.
    k_turn int4[], k_instance text[], k_op int2[], k_key text[], k_value text[], k_updated int8[],
    -- Messages: 0 to itself, 1 to a running instance, 2 starts one, otherwise `taken` goes back to the sender.
    m_turn int4[], m_kind int2[], m_from text[], m_from_shard int2[], m_to text[], m_to_shard int2[], m_id text[],
    m_queue text[], m_data bytea[], m_orchestration text[], m_parent text[], m_taken_id text[], m_taken_data bytea[],
    OUT now int8, OUT outcomes int2[], OUT wake_turn int4[], OUT wake_shard int2[], OUT wake_instance text[]
) LANGUAGE plpgsql AS $$
BEGIN
    SELECT g.* INTO now, outcomes, wake_turn, wake_shard, wake_instance FROM commit_group(
        t_instance, t_shard, t_epoch, t_execution, t_event, t_leftover, s_orchestration, s_version, s_status,
        s_paused, s_execution, s_event, s_bytes, s_wake, s_pending, s_waits, s_stalled, s_custom, s_custom_version,
        s_output, s_completed, s_shard, e_turn, e_instance, e_epoch, e_execution, e_event, e_terminal, e_source,
        e_message, e_at, e_data, c_turn, c_instance, c_seq, '{}', k_turn, k_instance, k_op, k_key, k_value,
        k_updated, m_turn, m_kind, m_from, m_from_shard, m_to, m_to_shard, m_id, m_queue, m_data, m_orchestration,
        m_parent, m_taken_id, m_taken_data, '{}', '{}', '{}'
    ) g;
END $$;
