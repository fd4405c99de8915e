SELECT count(*) FROM instances WHERE wake_at IS NOT NULL AND status = 'Running'
