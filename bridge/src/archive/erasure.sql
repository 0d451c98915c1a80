-- Studies that are being erased. Rows of such a study have the number of its erasure below zero as their origin: they are shown to
-- nobody, and objects that arrive for the same UID begin another study.
CREATE TABLE erasure (
  id INTEGER PRIMARY KEY,
  uid TEXT,                            -- of the study; NULL once neither rows nor the intake log can hold anything of it
  log_before INTEGER NOT NULL,         -- only segments of the intake log below this sequence number can hold anything of it
  facts TEXT NOT NULL                  -- what is to be said of it when all is done; no business of the archive
) STRICT;

-- The highest number that an erased instance had, since numbers are never given twice.
CREATE TABLE erased_row (last INTEGER NOT NULL) STRICT;
INSERT INTO erased_row (last) VALUES (0);
