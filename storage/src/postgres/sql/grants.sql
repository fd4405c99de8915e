-- What each role may do. {schema} and the roles' names are filled in; they are plain names.
REVOKE ALL ON ALL TABLES IN SCHEMA {schema} FROM PUBLIC;
REVOKE EXECUTE ON ALL FUNCTIONS IN SCHEMA {schema} FROM PUBLIC;
GRANT USAGE ON SCHEMA {schema} TO {runtime}, {worker}, {client}, {retention};
GRANT SELECT ON ALL TABLES IN SCHEMA {schema} TO {runtime}, {worker}, {client}, {retention};
GRANT EXECUTE ON FUNCTION now_ms, is_known, tree_of TO {runtime}, {worker}, {client}, {retention};

-- Nodes that run orchestrations: they add to histories and never change them.
GRANT INSERT ON history TO {runtime};
GRANT INSERT, UPDATE ON instances TO {runtime};
GRANT UPDATE ON shards TO {runtime};
GRANT INSERT, UPDATE, DELETE ON inbox, kv, heartbeats, nodes, sessions, shortages TO {runtime};
GRANT EXECUTE ON FUNCTION commit_turns, commit_group, save_heartbeat, start_instances, begin_instances, send_messages, hold_since, replace_instance, renew_node,
    renew_lease, acquire_shards, release_shards, leave, forget_dead_nodes, report_shortages, claim_session TO {runtime};

-- Workers: sessions and heartbeats; nodes and large results, as messages, by these functions alone.
GRANT INSERT, UPDATE, DELETE ON sessions, heartbeats TO {worker};
GRANT EXECUTE ON FUNCTION renew_node, renew_lease, leave, claim_session, send_messages, hold_since, save_heartbeat, report_shortages
    TO {worker};

-- Clients: new instances and messages.
GRANT INSERT ON instances, inbox TO {client};
GRANT EXECUTE ON FUNCTION start_instances, begin_instances, send_messages, hold_since, replace_instance TO {client};

-- Retention: deletes, by these functions alone.
GRANT EXECUTE ON FUNCTION delete_tree, prune_instance, hold_since TO {retention};

-- What does more than its caller may do by itself. Temporary tables come last: a caller must not put its own in the place of ours.
ALTER FUNCTION delete_tree SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION prune_instance SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION replace_instance SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION renew_node SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION send_messages SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION hold_since SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION save_heartbeat SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION report_shortages SECURITY DEFINER SET search_path = {schema}, pg_temp;
ALTER FUNCTION leave SECURITY DEFINER SET search_path = {schema}, pg_temp;
