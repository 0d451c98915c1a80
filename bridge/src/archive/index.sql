-- The index of the archive. Times are milliseconds since 1970-01-01 UTC. Digests are raw bytes.
CREATE TABLE study (
  id INTEGER PRIMARY KEY,
  uid TEXT NOT NULL,
  -- 0 for what was received here, above it the foreign_study that it came with, below it the erasure that takes it away
  origin INTEGER NOT NULL DEFAULT 0,
  patient_id TEXT NOT NULL,
  patient_issuer TEXT NOT NULL,
  birth_date INTEGER,                  -- YYYYMMDD
  study_date INTEGER,                  -- YYYYMMDD
  accession TEXT NOT NULL,
  study_number TEXT NOT NULL,          -- StudyID (0020,0010)
  attributes BLOB NOT NULL,            -- patient and study attributes, Explicit VR Little Endian, UTF-8
  instances INTEGER NOT NULL DEFAULT 0,
  bytes INTEGER NOT NULL DEFAULT 0,    -- of all its current objects, kept here or not
  received_ms INTEGER NOT NULL,
  changed_ms INTEGER NOT NULL,
  UNIQUE (uid, origin)
) STRICT;
CREATE INDEX study_patient ON study(patient_id, patient_issuer);
CREATE INDEX study_date ON study(study_date);
CREATE INDEX study_accession ON study(accession);
CREATE INDEX study_birth ON study(birth_date);
CREATE INDEX study_origin ON study(origin) WHERE origin <> 0;

-- Every form under which a study's patient name may be asked for: whole and each component group, in lower case.
CREATE TABLE patient_name (
  folded TEXT NOT NULL,
  study INTEGER NOT NULL REFERENCES study(id),
  PRIMARY KEY (folded, study)
) STRICT, WITHOUT ROWID;
CREATE INDEX patient_name_study ON patient_name(study);

CREATE TABLE series (
  id INTEGER PRIMARY KEY,
  study INTEGER NOT NULL REFERENCES study(id),
  uid TEXT NOT NULL,
  modality TEXT NOT NULL,
  attributes BLOB NOT NULL,
  instances INTEGER NOT NULL DEFAULT 0,
  UNIQUE (study, uid)
) STRICT;
CREATE INDEX series_uid ON series(uid);
CREATE INDEX series_modality ON series(modality);

CREATE TABLE instance (
  id INTEGER PRIMARY KEY,
  series INTEGER NOT NULL REFERENCES series(id),
  uid TEXT NOT NULL,
  sop_class TEXT NOT NULL,
  transfer_syntax TEXT NOT NULL,
  number INTEGER,                      -- InstanceNumber (0020,0013)
  attributes BLOB NOT NULL,
  meta_bytes INTEGER NOT NULL,         -- offset of the data set in the file
  file_bytes INTEGER NOT NULL,
  file_sha256 BLOB NOT NULL,           -- of the whole Part 10 file, which depends on nothing but the object
  file_crc32 INTEGER,                  -- of the same, to prove a local file at every reading; NULL where it was never here
  received_ms INTEGER NOT NULL,
  calling_ae TEXT NOT NULL,
  shard INTEGER,                       -- directory of the local file; NULL when it was evicted
  file TEXT,
  superseded INTEGER NOT NULL DEFAULT 0,
  origin INTEGER NOT NULL DEFAULT 0    -- of its study
) STRICT;
CREATE UNIQUE INDEX instance_uid ON instance(uid, origin) WHERE superseded = 0;
CREATE INDEX instance_series ON instance(series, number);
CREATE INDEX instance_evicted ON instance(series) WHERE file IS NULL AND superseded = 0;

-- Outbox: a study with something to publish. Written in the same transaction as the instance that causes it.
CREATE TABLE outbox (
  study INTEGER PRIMARY KEY REFERENCES study(id),
  due_ms INTEGER NOT NULL,             -- when its quiet time ends
  since_ms INTEGER NOT NULL
) STRICT;
CREATE INDEX outbox_due ON outbox(due_ms);


-- What of a study is on the ledger, or on its way.
CREATE TABLE publication (
  study INTEGER PRIMARY KEY REFERENCES study(id),
  version INTEGER NOT NULL,            -- of the manifest being published, or published last
  study_id BLOB NOT NULL,              -- the study's name on the ledger
  manifest BLOB NOT NULL,              -- encoded, of that version
  manifest_image BLOB NOT NULL,
  begun_ms INTEGER NOT NULL,
  -- What was seen on the ledger, at the configured depth. Nothing else counts.
  defined INTEGER NOT NULL DEFAULT 0,
  announced INTEGER NOT NULL DEFAULT 0, -- newest manifest version that the ledger names
  viewable_ms INTEGER,                 -- when this version was announced: previews and manifest are there
  final_ms INTEGER                     -- when all of it was there; NULL while it is on its way
) STRICT;
CREATE UNIQUE INDEX publication_study_id ON publication(study_id);
CREATE INDEX publication_open ON publication(final_ms) WHERE final_ms IS NULL;

-- Images on the ledger. `plain` holds what is not an object: the manifest and the previews.
CREATE TABLE image (
  id BLOB PRIMARY KEY,
  study INTEGER NOT NULL REFERENCES study(id),
  kind INTEGER NOT NULL,               -- 1 object, 2 preview, 3 manifest, 4 manifest of a series
  instance INTEGER REFERENCES instance(id),
  subject TEXT NOT NULL,               -- UID of what it shows or holds
  version INTEGER NOT NULL,            -- of the manifest that brought it
  position INTEGER NOT NULL,           -- in the order of publishing
  epoch INTEGER NOT NULL,
  pieces INTEGER NOT NULL,
  piece_bytes INTEGER NOT NULL,
  sealed_bytes INTEGER NOT NULL,
  root BLOB NOT NULL,
  mode INTEGER NOT NULL,               -- of the pieces: 1 calldata, 2 log, 3 code, 4 storage
  media_type TEXT NOT NULL DEFAULT '',
  sealed INTEGER NOT NULL DEFAULT 0,   -- seen on the ledger with this root
  plain BLOB
) STRICT, WITHOUT ROWID;
CREATE INDEX image_study ON image(study, version, position);
CREATE INDEX image_instance ON image(instance) WHERE instance IS NOT NULL;
CREATE INDEX image_subject ON image(subject, kind);

-- Where each piece is, so that none is ever searched for.
CREATE TABLE piece (
  image BLOB NOT NULL,
  number INTEGER NOT NULL,
  block INTEGER NOT NULL,
  position INTEGER NOT NULL,           -- of the transaction in its block
  entry INTEGER NOT NULL,              -- of the piece in its transaction
  PRIMARY KEY (image, number)
) STRICT, WITHOUT ROWID;

-- Studies of other sites, as far as their owners let this site in. What comes with them is kept apart from what was received here:
-- it may go at any time, and what was received must not go with it.
CREATE TABLE foreign_study (
  id INTEGER PRIMARY KEY AUTOINCREMENT, -- never given twice; the origin of its rows
  study_id BLOB NOT NULL UNIQUE,        -- its name on the ledger
  source BLOB NOT NULL,                 -- account of the site that published it
  mode INTEGER NOT NULL,                -- 1 previews only, 2 everything
  hidden INTEGER NOT NULL,              -- 1 before it may be seen and after that was taken back
  not_before INTEGER NOT NULL,          -- seconds since 1970, both inclusive
  not_after INTEGER NOT NULL,
  version INTEGER NOT NULL DEFAULT 0,   -- of the manifest that was taken in; 0 before the first
  manifest BLOB                         -- encoded
) STRICT;

-- Rows of foreign instances get numbers below zero that are never given twice, since a row may go while somebody still holds it.
CREATE TABLE foreign_row (last INTEGER NOT NULL) STRICT;
INSERT INTO foreign_row (last) VALUES (0);

-- What may be shown now. Whoever answers for somebody else reads these and not the tables.
CREATE VIEW visible_study AS SELECT * FROM study WHERE origin = 0 OR EXISTS
  (SELECT 1 FROM foreign_study f WHERE f.id = study.origin AND f.hidden = 0
     AND unixepoch() BETWEEN f.not_before AND f.not_after);

-- The same objects may be here twice, received and granted. Then the received ones are shown.
CREATE VIEW shown_study AS SELECT * FROM visible_study st WHERE st.instances > 0 AND (st.origin = 0 OR NOT EXISTS
  (SELECT 1 FROM visible_study twin WHERE twin.uid = st.uid AND twin.origin < st.origin AND twin.instances > 0));
CREATE VIEW shown_instance AS SELECT i.*, se.study AS study FROM instance i JOIN series se ON i.series = se.id
  WHERE i.superseded = 0 AND (i.origin = 0 OR NOT EXISTS
    (SELECT 1 FROM instance ti JOIN series ts ON ti.series = ts.id JOIN visible_study twin ON ts.study = twin.id
     WHERE ti.uid = i.uid AND ti.superseded = 0 AND ti.origin < i.origin
       AND twin.uid = (SELECT uid FROM study WHERE id = se.study)));
