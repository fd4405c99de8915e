-- Retention finds what has ended longest ago, however much has ended. A moment of ending is written once, in an update that
-- changes indexes anyway.
CREATE INDEX instances_ended ON instances (completed, id) WHERE completed IS NOT NULL AND parent IS NULL;
