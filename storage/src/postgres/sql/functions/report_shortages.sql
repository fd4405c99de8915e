-- What a node reports takes the place of what it reported before.
CREATE OR REPLACE FUNCTION report_shortages(
    reporter text, reasons text[], instances text[], orchestrations text[], counts int4[], times int8[]
) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    DELETE FROM shortages WHERE node = reporter;
    INSERT INTO shortages (node, reason, instance, orchestration, waiting, since)
        SELECT reporter, s.* FROM unnest(reasons, instances, orchestrations, counts, times) AS s;
END $$;
