-- Two rows for every step: that it was asked for, and what came of it.
INSERT INTO events (step, kind, data)
SELECT step, kind, CASE kind WHEN 1 THEN data END
FROM unnest($1::bigint[], $2::text[]) AS done (step, data), generate_series(0, 1) AS kind
