-- Paused instances are listed among the problems; there are few, and the others need not be looked at.
CREATE INDEX instances_paused ON instances (id) WHERE paused;
