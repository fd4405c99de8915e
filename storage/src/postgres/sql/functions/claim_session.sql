-- Takes a session unless a live worker used it less than `idle_ms` ago; returns who has it.
CREATE OR REPLACE FUNCTION claim_session(wanted text, claimant text, idle_ms int8) RETURNS text LANGUAGE plpgsql AS $$
DECLARE
    holder text;
BEGIN
    INSERT INTO sessions AS s (session, worker, used_at) VALUES (wanted, claimant, now_ms())
        ON CONFLICT (session) DO UPDATE SET worker = excluded.worker, used_at = excluded.used_at
        WHERE s.worker = excluded.worker OR s.used_at < excluded.used_at - idle_ms
           OR NOT EXISTS (SELECT FROM nodes n WHERE n.id = s.worker AND n.lease_until >= excluded.used_at)
        RETURNING worker INTO holder;
    IF holder IS NULL THEN
        SELECT s.worker INTO holder FROM sessions s WHERE s.session = wanted;
    END IF;
    RETURN coalesce(holder, claimant);
END $$;
