EXPLAIN (ANALYZE, BUFFERS)
SELECT wake_at, shard, id FROM instances
WHERE wake_at IS NOT NULL AND status = 'Running' AND wake_at <= (extract(epoch FROM now()) * 1000)::int8 + 60000
  AND shard = ANY (ARRAY(SELECT generate_series(0, 63)::int2))
ORDER BY wake_at LIMIT 1000000
