-- Holds an instance until the transaction ends, if it was there at a moment (milliseconds of the database's clock): then the calls of
-- this transaction meet the life that they are for. NULL when there is no such instance, or another one under its id since.
CREATE OR REPLACE FUNCTION hold_since(instance_id text, moment int8) RETURNS bool LANGUAGE sql VOLATILE AS $$
    SELECT true FROM instances i WHERE i.id = instance_id AND i.created <= moment FOR UPDATE;
$$;
