-- The time that all nodes share, in milliseconds since 1970.
CREATE OR REPLACE FUNCTION now_ms() RETURNS int8 LANGUAGE sql VOLATILE
    RETURN floor(extract(epoch FROM clock_timestamp()) * 1000)::int8;
